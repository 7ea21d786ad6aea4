"""What slimrank 0.7.0 promises to the programs that call it: records, the files it wrote, and how they are compared."""
