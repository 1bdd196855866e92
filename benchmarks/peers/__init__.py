"""Ponder beside its_hub, optillm and TreeQuest.

Empty: its workers run in the peers' own environments.
"""
