"""What ``fedcxr-site doctor`` looks at, one module per part of a site."""
