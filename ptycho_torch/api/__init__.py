"""The door that Ptychodus opens: its calls (`base_api`), translated into this package's own."""
