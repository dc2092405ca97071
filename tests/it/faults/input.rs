//! What callers send.

use super::{Row, noted, shown};

const PARITY: &str = "every_captured_body_gets_what_fastapi_gives";
const CRASHED: &str = "what_crashed_the_original_is_refused_politely";
const UNREADABLE: &str = "unreadable_bodies_are_400_as_in_the_original";
const ONLY_JSON: &str = "only_json_bodies_are_read";
const NOT_OURS: &str = "fields_that_are_not_ours_change_nothing_of_what_is_asked";
const NO_TIME: &str = "a_million_elements_or_keys_take_no_time";
const ANY_TEXT: &str = "any_text_arrives_as_it_was_sent";
const NO_V1: &str = "There is no `/v1` here";

pub const BODIES: &[Row] = &[
    shown("1", "Nothing", &[PARITY, "inputs_that_hold_no_text_are_shown"]),
    shown("2", "Half an object", &[PARITY]),
    shown("3", "A comma too many, comments, single quotes", &[PARITY]),
    shown("4", "A value and something behind it", &[PARITY]),
    shown("5", "A list, `null`, a text, a number", &[PARITY]),
    noted("6", "A byte order mark", &[PARITY], "It is passed over, as in the original"),
    shown("7", "Bytes that are not UTF-8", &[UNREADABLE]),
    shown("8", "UTF-16", &[UNREADABLE, ONLY_JSON]),
    noted("9", "No content type", &[ONLY_JSON], "422, as in the original"),
    shown("10", "Text, a form, several parts", &[ONLY_JSON]),
    shown("11", "A compressed body, or a bomb", &[ONLY_JSON]),
    shown("12", "Too large, and announced", &["a_body_announced_too_large_is_refused_before_it_is_sent"]),
    shown(
        "13",
        "Too large, and not announced",
        &[
            "a_body_without_a_length_is_refused_when_it_crosses_the_limit",
            "a_body_at_the_limit_is_read_and_one_byte_more_is_413",
        ],
    ),
    shown("14", "Shorter than announced", &["a_body_that_does_not_come_is_408"]),
    shown("15", "A byte now and then", &["a_body_that_drips_is_408"]),
    shown("16", "Too large, and asking for leave first", &["a_body_announced_too_large_is_refused_before_it_is_sent"]),
    noted(
        "17",
        "A hundred thousand levels",
        &[UNREADABLE, "depth_in_what_is_ignored_is_ignored"],
        "In fields that nobody reads, depth does not matter",
    ),
    shown(
        "18",
        "A million elements or keys",
        &[NO_TIME, "mistakes_are_reported_in_the_order_of_the_fields_and_not_without_end"],
    ),
    noted(
        "19",
        "A name twice",
        &["what_is_named_twice_counts_once_and_last", PARITY],
        "The last one counts, as in the original. Nobody behind this service reads the same bytes: what is sent on is written \
         anew",
    ),
    shown("20", "Names that mean something in JavaScript", &[NOT_OURS]),
    shown("21", "Fields that nobody asked for", &[NOT_OURS, PARITY]),
    shown("22", "Fields that would name another upstream or key", &[NOT_OURS]),
    noted("23", "Keys made to collide", &[NO_TIME], "No table is made of a caller's keys"),
];

pub const MESSAGES: &[Row] = &[
    noted(
        "24",
        "A history that is missing, no list, empty or too long",
        &[PARITY, "mistakes_are_reported_in_the_order_of_the_fields_and_not_without_end"],
        "It may be missing or empty: the message has a field of its own",
    ),
    shown("25", "A message that is no object", &[PARITY]),
    shown("26", "A role that is none", &["roles_and_models_that_cannot_be_are_refused_here"]),
    noted("27", "Content that is no text", &[PARITY], "Lists of parts are refused too"),
    noted("28", "Content without a character, or only spaces", &[PARITY, ANY_TEXT], "Accepted, as in the original"),
    shown("29", "Half a surrogate pair", &[CRASHED]),
    shown(
        "30",
        "Emoji, flags, combining marks, Hangul in parts",
        &[ANY_TEXT, "a_long_title_is_cut_between_characters", "a_title_is_asked_for_briefly_and_tidied"],
    ),
    noted(
        "31",
        "A NUL",
        &[ANY_TEXT, "a_conversation_id_is_made_of_harmless_characters"],
        "Content passes it on; names and ids refuse it",
    ),
    shown("32", "A control character as it is", &[PARITY]),
    shown(
        "33",
        "Invisible and turning characters",
        &[
            ANY_TEXT,
            "titles_lose_their_quotes_their_second_line_and_what_is_invisible",
            "text_is_quoted_so_that_nobody_can_forge_a_line",
        ],
    ),
    shown("34", "Line ends that would forge an event", &["text_cannot_forge_an_event", ANY_TEXT]),
    shown(
        "35",
        "One message too large, or too many",
        &[
            "a_body_at_the_limit_is_read_and_one_byte_more_is_413",
            "mistakes_are_reported_in_the_order_of_the_fields_and_not_without_end",
        ],
    ),
    shown("36", "More than the model takes", &["every_status_of_the_upstream_has_its_place_in_the_table"]),
    shown(
        "37",
        "Markup and scripts",
        &[
            "markup_is_answered_as_json_that_nobody_takes_for_a_page",
            "every_answer_says_what_it_is_and_may_stand_in_no_frame",
        ],
    ),
    shown("38", "Text that looks like an event, or like `[DONE]`", &[ANY_TEXT]),
];

pub const PARAMETERS: &[Row] = &[
    shown("39", "A temperature just out of range", &[PARITY]),
    shown("40", "`NaN`, `Infinity`, `1e999`", &[CRASHED]),
    noted(
        "41",
        "A temperature of another type",
        &[PARITY],
        "Numeric strings count, as in the original; `true` does not",
    ),
    shown("42", "Numbers of hundreds of digits", &["numbers_of_any_length_take_no_time", PARITY]),
    shown("43", "Token limits that are none", &["numbers_of_any_length_take_no_time", PARITY]),
    noted("44", "Parameters of OpenAI's own, out of range", &[NOT_OURS], "They are fields that nobody asked for"),
    shown("45", "A model's name that is none", &["roles_and_models_that_cannot_be_are_refused_here"]),
    noted("46", "`stream` in the body", &[NOT_OURS], "What is accepted decides, not the body"),
    noted("47", "Tools and schemas without end", &[NOT_OURS, "depth_in_what_is_ignored_is_ignored"], NO_V1),
    noted(
        "48",
        "Odd queries",
        &["queries_that_nobody_asked_for_change_nothing"],
        "What is not asked for is ignored; of a repeated cursor the first counts",
    ),
];

pub const PATHS: &[Row] = &[
    noted(
        "49",
        "A stream's id in another form",
        &["a_stream_that_does_not_exist_is_a_404_whatever_it_is_called", "a_stream_id_has_one_form"],
        "404, whatever the form; upper case is the same id",
    ),
    shown("50", "The nil UUID, and other versions", &["a_stream_that_does_not_exist_is_a_404_whatever_it_is_called"]),
    shown("51", "Slashes too many", &["unknown_paths_and_wrong_methods_get_the_originals_answers"]),
    shown(
        "52",
        "An id that would name a file",
        &[
            "a_conversations_id_names_no_file_and_stands_for_no_other",
            "a_conversation_id_is_made_of_harmless_characters",
        ],
    ),
    shown(
        "53",
        "Another caller's conversation",
        &[
            "anothers_conversation_is_unknown_on_every_route",
            "a_stopped_stream_of_anothers_conversation_is_kept_by_its_owner",
        ],
    ),
    noted(
        "54",
        "An id in two cases or normal forms",
        &["a_conversations_id_names_no_file_and_stands_for_no_other"],
        "Two cases are two conversations; what is not ASCII is no id",
    ),
    shown(
        "55",
        "A cursor that is none",
        &["a_cursor_that_makes_no_sense_begins_again_at_start", "a_cursor_is_a_number_and_the_header_wins"],
    ),
    shown("56", "Two cursors that differ", &["the_cursor_may_stand_in_the_query_and_the_header_wins"]),
    noted(
        "57",
        "Stopping twice, or what has ended",
        &["what_has_ended_cannot_be_stopped", "a_stream_that_does_not_exist_is_a_404_whatever_it_is_called"],
        "404, as in the original",
    ),
    shown("58", "A body where none is wanted", &["a_body_that_nobody_asked_for_leaves_the_connection_in_step"]),
];

pub const HTTP: &[Row] = &[
    shown(
        "59",
        "Another method",
        &["unknown_paths_and_wrong_methods_get_the_originals_answers", "other_methods_on_a_stream_are_405"],
    ),
    noted(
        "60",
        "HEAD",
        &["head_is_answered_like_get_without_a_body", "head_is_no_reader"],
        "A stream answers 405 and is not read",
    ),
    shown("61", "OPTIONS from no page", &["options_that_is_no_preflight_is_answered_by_the_route"]),
    shown(
        "62",
        "TRACE, CONNECT, and methods that are none",
        &[
            "other_methods_are_405_and_no_header_makes_one_method_or_path_another",
            "unknown_paths_and_wrong_methods_get_the_originals_answers",
        ],
    ),
    shown(
        "63",
        "No host, two, or one that is none",
        &["there_is_exactly_one_host_and_it_could_be_one", "a_host_is_a_name_or_an_address_with_or_without_a_port"],
    ),
    noted(
        "64",
        "Two lengths of a body, and malformed ones",
        &[
            "a_body_has_one_length_or_the_connection_ends_with_a_400",
            "of_a_length_and_chunks_the_chunks_count_and_the_connection_ends",
        ],
        "Of a length and chunks hyper takes the chunks, answers once and closes",
    ),
    noted(
        "65",
        "Line ends, folds and spaces where none may be",
        &["lines_are_lines"],
        "A bare line feed ends a line, as RFC 9112 allows",
    ),
    shown(
        "66",
        "A request behind a malformed one",
        &[
            "behind_an_error_in_the_body_nothing_is_read_and_behind_others_everything_is",
            "a_body_has_one_length_or_the_connection_ends_with_a_400",
        ],
    ),
    shown(
        "67",
        "Too many headers, too large ones, an address too long",
        &["heads_and_addresses_have_a_measure", "heads_are_bounded_in_size_and_number"],
    ),
    noted("68", "Floods that HTTP/2 allows for", &[], "HTTP/2 is not spoken towards callers"),
    shown(
        "69",
        "Upgrades elsewhere, of another version, for another page",
        &[
            "a_request_that_is_no_handshake_is_an_error_in_the_form_of_every_error",
            "a_page_that_is_not_in_the_list_gets_no_socket",
        ],
    ),
    shown(
        "70",
        "TLS, SSH or noise on the port",
        &[
            "what_is_no_http_ends_the_connection_and_nothing_of_it_is_in_the_log",
            "a_head_that_cannot_be_read_is_refused_in_the_form_of_every_error_with_a_line_in_the_log",
        ],
    ),
    shown(
        "71",
        "Ranges, conditions and encodings asked of a stream",
        &["a_stream_is_sent_as_it_is_whatever_else_is_asked_of_it"],
    ),
    shown(
        "72",
        "Headers that name another method or path",
        &["other_methods_are_405_and_no_header_makes_one_method_or_path_another"],
    ),
    shown(
        "73",
        "A request id that would forge a line",
        &["the_callers_own_is_kept_when_it_is_harmless", "a_callers_id_is_taken_only_when_it_is_harmless"],
    ),
    noted(
        "74",
        "Paths and agents that would forge a line",
        &["paths_that_match_nothing_are_not_repeated", "text_is_quoted_so_that_nobody_can_forge_a_line"],
        "The log names the route that matched, and no agent",
    ),
];

pub const ACCESS: &[Row] = &[
    shown(
        "75",
        "No key, a malformed one, two of them",
        &[
            "no_private_route_answers_without_good_credentials_and_every_refusal_is_the_same",
            "a_header_of_no_text_is_401",
            "the_scheme_may_be_written_in_any_case_and_followed_by_spaces",
        ],
    ),
    noted(
        "76",
        "A key that is nearly right",
        &[
            "everything_else_is_refused",
            "no_private_route_answers_without_good_credentials_and_every_refusal_is_the_same",
        ],
        "Digests are compared, all of them, in constant time by aws-lc. No test of timing: it would measure the machine",
    ),
    shown(
        "77",
        "A key in the query",
        &[
            "no_private_route_answers_without_good_credentials_and_every_refusal_is_the_same",
            "keys_prompts_answers_and_queries_are_in_no_line",
            "the_same_request_again_gets_the_same_ticket_and_no_log_line_has_one",
        ],
    ),
    shown(
        "78",
        "A ticket that is altered, another stream's, or of a stream that is gone",
        &[
            "a_ticket_opens_its_stream_and_nothing_else",
            "a_ticket_is_worth_nothing_when_its_stream_is_gone_or_the_service_began_anew",
            "a_ticket_is_for_one_stream_of_one_process",
            "what_cannot_be_a_guess_never_counts_as_one",
        ],
    ),
    shown(
        "79",
        "Every route without a key",
        &[
            "no_private_route_answers_without_good_credentials_and_every_refusal_is_the_same",
            "what_is_no_route_is_private_too_and_no_other_spelling_of_a_route_is_public",
            "only_what_says_nothing_of_anybody_is_public",
        ],
    ),
    shown(
        "80",
        "A page asks for leave",
        &["listed_pages_may_call_with_credentials_and_no_others", "by_default_any_page_may_call_without_credentials"],
    ),
    shown(
        "81",
        "Origins that are nearly right",
        &["listed_pages_may_call_with_credentials_and_no_others", "origins_are_kept_as_browsers_send_them"],
    ),
    noted(
        "82",
        "Any page, with credentials",
        &["by_default_any_page_may_call_without_credentials"],
        "It cannot be configured: `*` is without credentials, a list is with them",
    ),
    shown(
        "83",
        "A page asks for leave into a private network",
        &["a_preflight_needs_no_key_and_opens_no_private_network"],
    ),
    shown(
        "84",
        "Forged addresses",
        &[
            "nobody_else_is_believed",
            "callers_behind_a_trusted_proxy_are_told_apart_and_one_network_of_ipv6_is_one",
            "a_proxys_word_counts_as_far_as_it_is_trusted",
        ],
    ),
    shown(
        "85",
        "A million addresses or names",
        &[
            "a_million_names_take_bounded_memory_and_forgive_no_great_debt",
            "a_million_addresses_take_bounded_memory_and_free_no_blocked_one",
        ],
    ),
    shown(
        "86",
        "More than a caller may ask for",
        &[
            "a_burst_is_answered_then_429_and_after_the_time_that_was_told_again",
            "one_more_than_may_run_is_refused_and_others_are_not",
            "what_was_told_to_wait_is_enough",
            "what_has_no_tokens_left_is_refused_before_its_prompt_is_counted",
        ],
    ),
    noted(
        "87",
        "Just at the limit, at once, and across a minute's edge",
        &[
            "a_hundred_at_once_get_no_more_than_the_burst",
            "no_minute_gives_more_than_a_burst_and_what_comes_back",
            "what_was_reserved_is_corrected_by_what_was_used",
        ],
        "Several instances give the whole limit each",
    ),
    noted(
        "88",
        "The same question from two callers",
        &["a_key_for_repeating_is_each_callers_own"],
        "No answer is cached for another caller",
    ),
    noted(
        "89",
        "Half an answer in a cache",
        &["a_failure_is_not_kept"],
        "Only whole answers are kept, for their own idempotency key",
    ),
    shown(
        "90",
        "A key in a text",
        &[
            "keys_prompts_answers_and_queries_are_in_no_line",
            "upstreams_words_on_a_bad_request_are_passed_on_without_secrets",
            "keys_and_account_names_are_taken_out_and_the_sentence_stays",
        ],
    ),
    noted(
        "91",
        "Labels without end",
        &["paths_that_match_nothing_are_not_repeated"],
        "No metrics yet; lines of the log name the route that matched",
    ),
    shown("92", "The documents are there for everybody", &["without_documents_there_is_no_sign_of_them"]),
    shown(
        "93",
        "A neighbour who guesses",
        &[
            "guesses_from_an_address_that_guessed_twenty_times_are_refused_for_a_while",
            "who_is_known_passes_whatever_others_have_done_from_the_same_address",
        ],
    ),
    shown(
        "94",
        "A token that expires while its WebSocket is open",
        &["a_socket_ends_with_the_token_that_it_came_with"],
    ),
];
