"""Gaunt blocks for MACE, and the ``--plugin`` option that brings them in.

The package itself imports nothing: ``plugin_option`` adds ``--plugin`` and reads the entry points,
``run_train`` is the training command without a start-up hook, ``plugin`` is the module that the
entry point ``gaunt`` of the group ``mace.plugins`` names.
"""
