"""The networks that are measured: drawn or given, their layers, and profiles over depth."""
