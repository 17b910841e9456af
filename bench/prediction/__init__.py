"""What `plan` predicts, against what an export takes: rates are measured first, on the same machine."""
