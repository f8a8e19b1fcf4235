"""Tables, verdicts and sentences from records and arrays; no torch."""
