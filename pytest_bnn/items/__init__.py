"""Audits without a test: networks that are named, collected as one item a check.

Loads neither torch nor what is named before the first of these items runs.
"""
