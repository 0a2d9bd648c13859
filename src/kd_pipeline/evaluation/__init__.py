"""The test set read once: metrics, paired statistics, report and figures."""
