"""Procedural frontal chest radiographs: patients, findings, scanners, reports and whole sites."""
