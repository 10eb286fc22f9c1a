"""Reports for people: one self-contained page, a table, a chart. Pure functions of the report."""

from service.reports.accuracy_curve import render_svg
from service.reports.csv_rows import render_csv
from service.reports.page import render_html

__all__ = ["render_csv", "render_html", "render_svg"]
