"""What alignment costs: ratios measured side by side in one process, medians of interleaved repeats."""
