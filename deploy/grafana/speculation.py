"""The dashboard *Speculation*: what the draft is worth, where it goes wrong, what a token costs."""

from __future__ import annotations

from panels import Json, dashboard, heat, lines, number, query


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate(redraft_{name}{{DRAFT}}[$__rate_interval]))"


def _share(part: str, whole: str, by: str = "model_name, draft") -> str:
    return f"{_rate(part, by)} / {_rate(whole, by)}"


BOTH = "{{model_name}} {{draft}}"
SPEEDUP = _share("plain_seconds_estimated_total", "round_seconds_total")
COST = (
    "sum by (model_name) (redraft_price_per_hour{MODEL}) / 3600 * 1e6 / "
    "sum by (model_name) (rate(redraft_generation_tokens_total{DRAFT}[$__rate_interval]))"
)
BY_POSITION = (
    f"{_rate('spec_accepted_tokens_per_pos_total', 'position')} "
    "/ on () group_left () sum(rate(redraft_spec_drafts_total{DRAFT}[$__rate_interval]))"
)

PANELS: list[Json] = [
    lines(
        "Acceptance length",
        "Tokens per round by draft and its version, the bonus token included; rounds that drafted nothing count as 1.",
        "short",
        query(_share("acceptance_length_sum", "acceptance_length_count"), BOTH),
    ),
    lines(
        "Acceptance length of rounds that drafted",
        "What the draft is worth when it is asked, by draft and its version.",
        "short",
        query("1 + " + _share("spec_accepted_tokens_total", "spec_drafts_total"), BOTH),
    ),
    lines(
        "Speed-up against plain decoding",
        "Estimated: seconds that the same tokens would have taken without drafts, by the engine's measured costs, over "
        "those that rounds took.",
        "short",
        query(SPEEDUP, BOTH),
    ),
    heat(
        "Acceptance length of rounds",
        "Tokens that each round committed; colour is rounds per second.",
        "short",
        query(_rate("acceptance_length_bucket", "le"), "{{le}}"),
    ),
    heat(
        "Acceptance by position",
        "Share of the rounds that drafted whose drafted token at this place of the path was accepted.",
        "percentunit",
        query(BY_POSITION, "{{position}}"),
        buckets=False,
    ),
    lines(
        "Acceptance by position, as lines",
        "The first place tells how good the draft is; how fast the next ones fall, how long to draft.",
        "percentunit",
        query(BY_POSITION, "{{position}}"),
    ),
    heat(
        "Acceptance length of requests",
        "Mean of each choice that ended; a second ridge is a kind of text that the draft does not know.",
        "short",
        query(_rate("request_acceptance_length_bucket", "le"), "{{le}}"),
    ),
    lines(
        "Output that came from drafts",
        "Share of the tokens made that had been drafted.",
        "percentunit",
        query(_share("spec_accepted_tokens_total", "generation_tokens_total"), BOTH),
    ),
    lines(
        "Drafted nodes that were accepted",
        "Share; falls when trees grow, so look at the speed-up first.",
        "percentunit",
        query(_share("spec_accepted_tokens_total", "spec_draft_tokens_total"), BOTH),
    ),
    lines(
        "Drafted, accepted and rejected per second",
        "Nodes that were verified, and what became of them.",
        "short",
        query(_rate("spec_draft_tokens_total", "model_name"), "drafted {{model_name}}"),
        query(_rate("spec_accepted_tokens_total", "model_name"), "accepted {{model_name}}"),
        query(
            f"{_rate('spec_draft_tokens_total', 'model_name')} - {_rate('spec_accepted_tokens_total', 'model_name')}",
            "rejected {{model_name}}",
        ),
    ),
    lines(
        "Drafted nodes by origin",
        "Per second: proposed by the draft, or by a grammar that left no choice.",
        "short",
        query(_rate("spec_draft_tokens_by_origin_total", "origin"), "{{origin}}"),
        stack=True,
    ),
    lines(
        "Rows per round",
        "Roots and drafted nodes that a pass verified for all requests together.",
        "short",
        query(_share("round_rows_sum", "round_rows_count"), f"mean {BOTH}"),
        query(f"histogram_quantile(0.95, {_rate('round_rows_bucket', 'le')})", "p95"),
    ),
    lines(
        "Cost of a million tokens",
        "At the price given to the server (--price-per-hour), and at the estimated speed without drafts.",
        "short",
        query(COST, "{{model_name}}"),
        query(
            f"{COST} * {_share('plain_seconds_estimated_total', 'round_seconds_total', 'model_name')}",
            "plain {{model_name}}",
        ),
    ),
    number(
        "Rounds that draft",
        "Share of the rounds that verified drafted nodes; the rest was not expected to pay.",
        "percentunit",
        query(_share("spec_drafts_total", "spec_rounds_total"), BOTH),
    ),
    number(
        "Drafts",
        "Which serve, on how many servers.",
        "short",
        query("count by (draft) (redraft_draft_info{DRAFT})", "{{draft}}"),
    ),
]
SPECULATION = dashboard(
    "redraft-speculation",
    "Redraft: Speculation",
    "What the draft is worth, where it goes wrong, what a token costs.",
    PANELS,
)
