"""Reports for people: one self-contained page, a table, a chart. Pure functions of the report."""

from service.reports.accuracy_curve import render_svg
from service.reports.csv_rows import render_csv
from service.reports.page import render_html
from service.reports.pareto_front import render_pareto_svg
from service.reports.sweep_page import render_sweep_html

__all__ = ["render_csv", "render_html", "render_pareto_svg", "render_svg", "render_sweep_html"]
