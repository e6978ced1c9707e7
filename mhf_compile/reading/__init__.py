"""Reading: values of a tape as index notation, by one rule for each ATen operation."""
