"""Pictures, tables and pages of results; nothing is computed here."""

from reid.report.activations import plot_activations
from reid.report.answer_page import AnswerOptions, write_answer_page
from reid.report.camera_pairs import plot_camera_pairs
from reid.report.curves import plot_cmc
from reid.report.distance_histograms import plot_distances, plot_roc
from reid.report.embedding_map import plot_embedding_map
from reid.report.evaluation_page import Applied, SetResults, cmc_drawing, set_drawings, write_evaluation
from reid.report.page import Drawing, Section, Table, write_page
from reid.report.ranklists import RankLists, choose_queries, find_queries, plot_rank_lists, read_queries
from reid.report.tables import Scored, describe_protocol, results_table

__all__ = [
    "AnswerOptions",
    "Applied",
    "Drawing",
    "RankLists",
    "Scored",
    "Section",
    "SetResults",
    "Table",
    "choose_queries",
    "cmc_drawing",
    "describe_protocol",
    "find_queries",
    "plot_activations",
    "plot_camera_pairs",
    "plot_cmc",
    "plot_distances",
    "plot_embedding_map",
    "plot_rank_lists",
    "plot_roc",
    "read_queries",
    "results_table",
    "set_drawings",
    "write_answer_page",
    "write_evaluation",
    "write_page",
]
