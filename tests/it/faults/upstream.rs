//! What the upstream does.

use super::{Row, noted, shown};

pub const ROWS: &[Row] = &[
    shown(
        "U1",
        "No connection",
        &[
            "an_upstream_that_cannot_be_reached_is_a_502_that_names_no_address",
            "a_refused_connection_is_an_error_that_names_no_address",
            "what_may_pass_is_asked_again_and_what_would_not_is_not",
        ],
    ),
    noted(
        "U2",
        "Its name does not resolve",
        &["an_upstream_that_cannot_be_reached_is_a_502_that_names_no_address"],
        "No address is remembered beyond open connections",
    ),
    shown("U3", "No TLS, or a bad one", &["a_server_that_speaks_no_tls_is_told_from_one_that_is_not_there"]),
    shown(
        "U4",
        "The connection is not made in time",
        &["no_connection_in_time_is_a_504", "no_connection_in_time_is_tried_once_more"],
    ),
    shown(
        "U5",
        "It takes the question and says nothing",
        &[
            "no_first_byte_in_time_is_a_504_and_the_connection_is_closed",
            "a_silent_upstream_is_left",
            "what_may_have_been_billed_is_not_asked_again",
        ],
    ),
    shown(
        "U6",
        "It falls silent in the middle, comments aside",
        &[
            "what_says_nothing_is_no_progress",
            "thought_and_calls_of_tools_are_progress_and_are_not_passed_on",
            "comments_are_no_further_word",
            "comments_are_no_first_word",
            "a_silent_upstream_is_left",
        ],
    ),
    shown(
        "U7",
        "It drips for ever",
        &[
            "a_stream_that_drips_for_ever_ends_at_the_total_limit",
            "no_last_byte_in_time_is_a_504_and_the_connection_is_closed",
            "a_flood_of_comments_does_not_hold_off_the_limits",
        ],
    ),
    shown(
        "U8",
        "The connection breaks in the middle",
        &["a_broken_connection_is_an_error_with_the_text_so_far", "behind_the_head_of_a_stream_nothing_is_asked_again"],
    ),
    shown(
        "U9",
        "It ends in good order without saying that it is complete",
        &[
            "an_empty_finish_reason_is_none",
            "done_alone_proves_nothing_when_no_text_came",
            "the_last_event_counts_without_its_empty_line_if_it_is_whole",
            "an_end_in_good_order_without_proof_of_completion_is_an_error",
            "an_answer_that_breaks_off_is_never_passed_off_as_whole",
        ],
    ),
    shown(
        "U10",
        "A finish reason and no `[DONE]`",
        &[
            "a_finish_reason_beside_text_needs_an_end_in_good_order",
            "what_comes_behind_a_finish_reason_takes_it_back",
            "a_reason_that_names_a_failure_is_an_error_also_where_a_server_behind_the_server_gave_it",
            "a_finish_reason_is_proof_whatever_becomes_of_the_rest",
            "behind_a_finish_reason_silence_is_no_error",
        ],
    ),
    shown("U11", "`[DONE]` and no finish reason", &["done_is_proof_without_a_finish_reason"]),
    shown(
        "U12",
        "Bytes behind `[DONE]`",
        &["what_comes_behind_done_is_ignored", "a_stream_that_goes_on_behind_done_spoils_no_later_request"],
    ),
    shown(
        "U13",
        "An event that is not JSON, or odd JSON",
        &[
            "an_event_that_says_nothing_is_skipped",
            "an_odd_field_is_a_missing_field",
            "half_a_character_waits_for_its_other_half",
            "binary_garbage_between_events_is_read_over",
            "an_event_that_is_not_json_is_an_error_and_is_not_quoted",
            "what_is_merely_odd_is_read_over",
        ],
    ),
    shown(
        "U14",
        "A character or a line end in two packets",
        &[
            "wherever_the_bytes_are_cut_the_events_are_the_same",
            "a_cut_inside_a_packet_of_http_is_invisible_too",
            "an_answer_cut_at_every_byte_is_the_same_answer",
            "every_vector_cut_at_every_byte_gives_the_same_events",
        ],
    ),
    shown("U15", "Bytes that are not UTF-8", &["invalid_utf8_becomes_the_replacement_character"]),
    shown(
        "U16",
        "A line, an event or an answer without end",
        &[
            "a_line_of_more_than_16_mebibytes_is_an_error",
            "an_answer_of_more_than_16_mebibytes_is_an_error_with_what_fits",
            "an_answer_larger_than_16_mib_is_refused_whether_announced_or_not",
            "memory_is_bounded_in_a_line_and_in_an_event",
        ],
    ),
    shown(
        "U17",
        "Everything else that event streams may hold",
        &[
            "any_bytes_in_any_pieces_give_what_the_naive_decoder_gives",
            "every_vector_cut_at_every_byte_gives_the_same_events",
        ],
    ),
    shown(
        "U18",
        "Status 200 and an error inside",
        &[
            "an_error_is_told_wherever_the_upstream_tells_it",
            "a_whole_answer_is_read_by_the_same_rules",
            "an_error_inside_the_stream_ends_it_first_or_later",
            "an_error_in_a_200_counts_as_the_status_it_names",
        ],
    ),
    shown(
        "U19",
        "A page of HTML, or JSON where a stream was asked for",
        &[
            "a_stream_that_comes_as_a_whole_answer_is_one_piece_and_an_end",
            "a_whole_answer_that_comes_as_a_stream_is_whole_when_the_stream_is",
            "a_body_that_is_no_stream_is_an_error_and_is_not_quoted",
            "what_is_not_an_answer_is_a_502",
            "a_page_of_html_is_never_quoted",
        ],
    ),
    shown("U20", "A stream by another content type, or none", &["a_stream_by_another_name_is_read_all_the_same"]),
    noted(
        "U21",
        "A compressed body, or a bomb",
        &["what_is_compressed_though_nobody_asked_is_refused_plainly_and_once", "what_is_not_an_answer_is_a_502"],
        "`identity` is asked for and nothing is ever inflated: such a body is refused, and asking again would bring the same",
    ),
    shown(
        "U22",
        "It refuses the question",
        &[
            "the_reason_is_told_in_whatever_wrapping_it_comes",
            "whatever_the_sentence_a_temperature_that_nobody_asked_for_is_left_out_and_that_is_remembered",
            "what_the_caller_asked_for_and_the_model_refuses_goes_back_to_him",
            "upstreams_words_on_a_bad_request_are_passed_on_without_secrets",
            "what_would_fail_again_is_asked_once",
        ],
    ),
    shown(
        "U23",
        "It refuses our key",
        &["a_refused_key_is_never_described", "a_key_that_is_refused_rests_and_the_next_one_serves_at_once"],
    ),
    shown(
        "U24",
        "No such model",
        &["a_404_is_about_the_model_only_if_it_says_so", "every_status_of_the_upstream_has_its_place_in_the_table"],
    ),
    shown(
        "U25",
        "Too many requests",
        &[
            "milliseconds_count_more_than_seconds",
            "a_date_is_waited_for",
            "more_than_a_minute_is_not_waited_for_but_told_to_the_caller",
            "callers_are_told_how_long_to_wait",
        ],
    ),
    shown(
        "U26",
        "No money left",
        &[
            "an_account_without_money_is_recognised_by_whatever_name",
            "an_empty_account_is_never_asked_again_whatever_upstream_advises",
        ],
    ),
    shown(
        "U27",
        "It fails with a 5xx",
        &[
            "a_failure_that_may_pass_is_asked_again_and_the_caller_never_knows",
            "upstream_is_asked_as_often_again_as_configured_and_the_last_failure_is_told",
            "without_upstreams_word_the_wait_doubles_up_to_8_seconds_and_differs",
        ],
    ),
    noted(
        "U28",
        "It closes an HTTP/2 connection, refuses streams, or asks for less",
        &[
            "a_graceful_goaway_costs_no_request",
            "an_abrupt_goaway_costs_no_request",
            "a_request_that_crosses_a_goaway_is_asked_again",
            "a_refused_stream_is_asked_again",
            "a_stream_that_is_reset_to_slow_down_is_asked_again_as_what_may_pass",
            "an_edge_that_refuses_every_stream_is_an_error_in_time",
            "a_maximum_age_of_connections_costs_no_request",
            "what_may_have_been_processed_is_not_asked_again_unless_retries_say_so",
        ],
        "Only what the upstream says that it has not processed goes out again by itself. An edge that sends more than 100 \
         empty DATA frames on one connection ends it: h2 has that limit and no setting for it, so that a connection with 32 \
         of them takes no more requests",
    ),
    shown(
        "U29",
        "A connection of the pool turns out to be closed",
        &["a_connection_that_breaks_before_an_answer_is_made_again", "a_failure_spoils_no_later_request"],
    ),
    shown("U30", "A redirect", &["a_redirect_is_not_followed"]),
    shown(
        "U31",
        "It fails again and again",
        &[
            "an_upstream_that_fails_too_often_is_not_asked_and_callers_are_told_within_5_milliseconds",
            "one_probe_is_let_through_and_its_success_lets_everybody_through",
            "every_kind_of_outage_counts_and_no_refusal_does",
            "a_model_that_fails_keeps_nobody_from_other_models",
            "having_no_connection_rests_a_key_for_every_model",
            "a_question_counts_as_one_failure_however_often_it_is_asked_again",
        ],
    ),
    noted(
        "U32",
        "It does not list its models",
        &[
            "a_list_of_models_is_read_in_every_form",
            "a_key_that_may_not_list_models_may_chat_and_is_healthy",
            "an_upstream_without_a_list_is_as_healthy_as_its_chats",
            "while_upstream_cannot_be_asked_the_originals_fixed_list_is_given",
        ],
        "The last list, or the fixed one, as long as it takes; no header says so",
    ),
    noted(
        "U33",
        "Several choices, out of order; tool calls",
        &["what_is_merely_odd_is_read_over", "answers_are_decoded_leniently"],
        "One choice is asked for and its text passed on; nothing else is",
    ),
    shown(
        "U34",
        "It takes fewer streams on a connection than there are questions",
        &[
            "three_hundred_streams_at_a_hundred_a_connection_all_have_their_first_word",
            "six_hundred_streams_at_a_hundred_a_connection_all_have_their_first_word",
            "streams_beyond_a_connection_begin_within_two_seconds_of_asking",
            "an_edge_that_allows_few_streams_a_connection_gets_more_connections",
            "requests_beyond_the_connections_there_can_be_wait_for_a_free_one",
        ],
    ),
    shown(
        "U35",
        "The path to it dies without a word",
        &[
            "the_second_question_after_an_idle_path_died_is_answered",
            "the_second_question_after_a_path_with_running_answers_died_is_answered",
            "the_second_question_is_answered_also_where_many_idle_connections_died",
            "the_second_stream_after_a_path_died_begins",
            "answers_whose_path_died_end_long_before_their_time_limit",
            "a_time_out_closes_the_connection_it_happened_on",
            "a_time_out_costs_the_answers_beside_it_nothing",
        ],
    ),
    shown(
        "U36",
        "Answers on a shared connection that are stopped, or whose last frame comes late",
        &[
            "an_answer_that_was_complete_is_never_reset",
            "thousands_of_whole_answers_break_nothing",
            "of_streams_beside_fifteen_hundred_that_are_stopped_none_is_lost",
            "a_stop_frees_the_upstream_and_keeps_the_connection",
            "a_stream_that_goes_on_behind_done_is_let_go_and_costs_nobody_else",
        ],
    ),
    shown("U37", "Its name leads elsewhere", &["where_the_name_leads_is_asked_again_for_new_connections"]),
];
