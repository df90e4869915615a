"""Campaigns: attacks on a recognizer, utterance by utterance, and the tables made of them."""

from sec4sr_pl.robustness.campaign import Campaign, CampaignError
from sec4sr_pl.robustness.tables import Summary, summarize
from sec4sr_pl.robustness.transfer import Transfer

__all__ = ["Campaign", "CampaignError", "Summary", "Transfer", "summarize"]
