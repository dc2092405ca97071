//! What callers do.

use super::{Row, noted, shown};

pub const ROWS: &[Row] = &[
    shown(
        "C1",
        "A reader's connection breaks in the middle of a stream",
        &[
            "a_reader_who_leaves_and_returns_gets_what_it_missed",
            "every_cursor_gets_exactly_the_rest_during_the_generation_and_after",
            "a_page_that_is_cut_off_and_reloaded_ends_with_the_exact_text_and_asks_no_more",
        ],
    ),
    shown(
        "C2",
        "A stream is begun and never read",
        &["a_stream_that_nobody_ever_reads_is_given_up", "with_an_orphan_time_of_zero_no_stream_is_given_up"],
    ),
    noted(
        "C3",
        "The last reader leaves",
        &[
            "upstream_is_asked_at_once_whoever_reads",
            "a_stream_that_was_read_once_is_not_given_up",
            "with_on_disconnect_cancel_the_last_reader_takes_the_stream_along",
        ],
        "It goes on, unless the request says otherwise",
    ),
    shown(
        "C4",
        "A caller leaves before it hears the stream's address",
        &[
            "a_stream_begun_twice_is_one_stream",
            "a_caller_who_leaves_and_comes_back_finds_the_answer",
            "work_for_a_caller_who_left_holds_its_place_among_the_requests_in_flight",
            "work_for_a_caller_who_left_takes_one_of_the_callers_streams",
        ],
    ),
    shown(
        "C5",
        "A caller leaves while it waits for a whole answer",
        &["a_caller_who_leaves_takes_the_upstream_call_with_it", "a_caller_who_leaves_is_logged_as_499"],
    ),
    shown(
        "C6",
        "A reader is slow",
        &[
            "a_slow_reader_holds_nobody_up_and_misses_nothing",
            "a_socket_that_does_not_read_slows_nobody_and_misses_nothing",
        ],
    ),
    shown(
        "C7",
        "A reader reads nothing at all",
        &[
            "a_reader_who_does_not_read_is_left_and_may_come_back",
            "a_write_that_gets_nowhere_fails_after_its_time_and_one_that_moves_does_not",
        ],
    ),
    noted(
        "C8",
        "A reader's network is gone without a word",
        &["a_stream_gets_a_comment_whenever_it_has_been_silent_for_15_seconds"],
        "The comment goes unacknowledged, and the system breaks the connection after 30 s (`TCP_USER_TIMEOUT`). Losing \
         packets needs a network of the test's own, which not every machine gives",
    ),
    noted(
        "C9",
        "A caller closes only its sending half",
        &["a_caller_who_closes_his_half_is_taken_for_gone"],
        "It counts as gone",
    ),
    noted(
        "C10",
        "The same stream is read again and again",
        &[
            "reading_a_stream_is_no_request_and_a_storm_of_reading_is_refused",
            "reading_again_and_again_over_a_socket_is_a_storm_too",
            "no_other_spelling_of_a_streams_address_gets_around_the_storms_limit",
        ],
        "Only where something of the guard's is configured",
    ),
    shown(
        "C11",
        "A reader comes back at or past the end",
        &[
            "at_the_end_of_an_ended_stream_there_is_nothing_to_read",
            "past_the_end_of_an_ended_stream_a_cursor_makes_no_sense_either",
        ],
    ),
    shown(
        "C12",
        "A cursor that no event has had",
        &["a_cursor_that_makes_no_sense_begins_again_at_start", "a_cursor_is_a_number_and_the_header_wins"],
    ),
    noted(
        "C13",
        "Ten thousand readers of one stream",
        &["ten_thousand_readers_of_one_stream_get_everything_from_one_copy"],
        "No limit for one stream: `MAX_CONNECTIONS` bounds them",
    ),
    shown(
        "C14",
        "The same request twice, or a hundred times at once",
        &[
            "a_hundred_at_once_are_one_upstream_call_and_one_answer",
            "a_stream_begun_twice_is_one_stream",
            "the_key_of_a_stream_that_failed_begins_a_new_one",
            "the_key_of_a_stream_that_is_gone_begins_a_new_one",
            "ten_thousand_failures_of_one_caller_push_out_nobodys_answer",
            "what_is_counted_is_what_is_kept_in_every_order",
        ],
    ),
    shown(
        "C15",
        "A key of idempotency with another body",
        &["another_body_under_the_same_key_is_refused_and_the_same_in_other_words_is_not"],
    ),
    noted(
        "C16",
        "A stream is stopped while it runs",
        &[
            "delete_stops_the_stream_and_leaves_upstream_at_once",
            "a_stopped_stream_ends_on_every_socket_and_its_upstream_is_left",
        ],
        "END with `cancelled`. Not from another instance: streams are this process's own",
    ),
    shown(
        "C17",
        "Stopping and ending at the same moment",
        &["every_random_stream_keeps_the_invariants", "an_append_needs_the_right_last_entry_and_a_running_stream"],
    ),
    noted(
        "C18",
        "A stream that is unknown, expired or another's",
        &[
            "anothers_stream_is_unknown_running_and_ended",
            "a_stream_that_does_not_exist_is_a_404_whatever_it_is_called",
            "after_its_time_an_ended_stream_is_gone_and_a_running_one_is_not",
        ],
        "404 for all of them, never 410",
    ),
    shown(
        "C19",
        "A WebSocket that is silent, or sends what it must not",
        &[
            "a_client_that_does_not_answer_pings_is_left_with_1001",
            "what_is_no_text_or_too_much_of_it_closes_the_socket_with_its_code",
            "what_makes_no_sense_is_refused_and_the_socket_lives",
        ],
    ),
    noted(
        "C20",
        "A head, a body or a first byte that does not come, or drips",
        &[
            "a_head_that_does_not_come_closes_the_connection",
            "a_body_that_does_not_come_is_408",
            "a_body_that_drips_is_408",
        ],
        "`make slow` does it with a thousand connections",
    ),
    shown(
        "C21",
        "A connection is kept and idle for as long as a load balancer keeps its own",
        &[
            "a_kept_connection_has_its_time_and_each_head_its_own_from_the_first_byte",
            "a_head_that_drips_has_no_more_time_than_one_that_stops",
            "idle_connections_do_not_hold_up_the_end",
            "two_thousand_requests_through_a_proxy_that_keeps_its_connections_meet_no_closed_one",
        ],
    ),
    shown(
        "C22",
        "An answer comes before its caller has sent the body",
        &[
            "an_answer_that_comes_before_the_body_was_sent_is_read_every_time",
            "what_is_sent_after_the_answer_is_read_within_bounds",
            "a_small_body_that_nobody_read_costs_no_connection",
        ],
    ),
    shown(
        "C23",
        "A proxy stands in front: kept connections, HTTP/1.0, HTTP/2, a prefix, WebSockets",
        &[
            "through_a_proxy_streams_come_word_by_word_and_are_resumed_and_stopped",
            "a_websocket_is_upgraded_through_a_proxy",
        ],
    ),
];
