"""Pathway networks cut out of the classifier, which cost what they keep."""
