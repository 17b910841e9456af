"""Package data: one YAML table per family of models; `pp_export.rules` reads them."""
