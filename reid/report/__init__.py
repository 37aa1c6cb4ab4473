"""Pictures and tables of results. Takes result objects; computes nothing."""

from reid.report.curves import plot_cmc
from reid.report.ranklists import choose_queries, plot_rank_lists
from reid.report.tables import Scored, protocol_in_words, results_table

__all__ = ["Scored", "choose_queries", "plot_cmc", "plot_rank_lists", "protocol_in_words", "results_table"]
