"""Imports of a dry run, done once in the process from which its ranks are forked."""

from deconattn.dry_run.virtual_gpu import prepare

prepare()
