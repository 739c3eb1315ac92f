"""Writers: a run's numbers for TensorBoard and MLflow, behind one small interface."""
