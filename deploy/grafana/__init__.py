"""The dashboards of pathlens as code: `python -m grafana` writes them as JSON beside this file."""
