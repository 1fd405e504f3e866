"""What an operator may choose: groups of settings, and how their values are checked and complained about in words."""

from pathlens.settings.group import FilePath, Integer, Number, Port, fields_of, from_json, refused, settings

__all__ = ["FilePath", "Integer", "Number", "Port", "fields_of", "from_json", "refused", "settings"]
