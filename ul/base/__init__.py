"""What every room uses: errors, records, parameters, statistics, UD and the one light table of names; no torch."""
