"""What several test files of this folder use."""

from __future__ import annotations

from ptycho_exec.fields.spec import field_specs

SPECS = field_specs()
