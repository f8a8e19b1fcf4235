"""Networks: classifiers, transformers, encoders that several tasks share, and the device they run on."""
