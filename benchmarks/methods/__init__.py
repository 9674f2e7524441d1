"""What is compared: networks, and each way to a number, this package's and the peers'."""
