"""Reports for people: one self-contained page, a table, a chart. Pure functions of the report."""

from service.reports.page import render_html
from service.reports.svg import render_svg
from service.reports.table import render_csv

__all__ = ["render_csv", "render_html", "render_svg"]
