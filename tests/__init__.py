"""Tests; helpers that several files share are imported from here."""
