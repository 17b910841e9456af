"""What an export on a GPU machine gets out of the machine: `python -m bench.gpu`."""
