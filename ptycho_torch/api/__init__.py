"""The calls that Ptychodus makes (`base_api`), translated into this package's own."""
