"""The service, Prometheus and Alertmanager on this machine, as a cluster would have them: `python -m local`."""
