"""The drawing kit: charts, their figures, tables and pages. It knows no run and no model."""
