//! What clients, proxies, databases and newcomers do that the service has to live with.

use super::{Row, noted, shown};

pub const ROWS: &[Row] = &[
    shown(
        "E1",
        "A reader takes an id before its event is whole",
        &["a_stream_that_breaks_at_any_byte_has_shown_no_id_before_all_of_its_event"],
    ),
    shown("E2", "A reader takes every empty line for an event", &["no_empty_line_stands_where_there_was_no_data"]),
    noted(
        "E3",
        "A proxy gathers words, to compress them or for its own reasons",
        &["a_stream_reads_exactly_as_the_contract_shows_it"],
        "`make clients` reads through nginx, HAProxy, Apache, Vite, webpack and express",
    ),
    shown("E4", "A reader cannot send headers", &["the_cursor_may_stand_in_the_query_and_the_header_wins"]),
    shown(
        "E5",
        "A cursor is ahead of the stream",
        &[
            "past_the_end_of_an_ended_stream_a_cursor_makes_no_sense_either",
            "a_cursor_that_makes_no_sense_begins_again_at_start",
        ],
    ),
    shown(
        "E6",
        "A proxy takes silence for a dead connection",
        &["a_stream_gets_a_comment_whenever_it_has_been_silent_for_15_seconds"],
    ),
    shown("E7", "A reader says that it does not want events", &["whoever_does_not_want_events_gets_none"]),
    noted(
        "E8",
        "A health check speaks HTTP/1.0, or asks with a slash at the end",
        &["monitors_may_ask_in_their_own_way"],
        "`OPTIONS /`, which HAProxy asks without a path, stays 405, as with FastAPI",
    ),
    shown("E9", "A page's libraries add headers", &["a_page_may_send_whatever_headers_it_asks_for"]),
    shown(
        "E10",
        "Pages that an app brings along, and programs that say they come from where they call",
        &["a_page_that_an_app_brings_along_may_be_listed", "a_page_that_is_not_in_the_list_gets_no_socket"],
    ),
    shown(
        "E11",
        "The service is below a path of a proxy's",
        &[
            "a_streams_address_leads_back_through_the_proxy",
            "everything_that_the_pages_name_is_there",
            "the_pages_work_with_and_without_a_root_path",
            "a_root_path_is_a_path_and_nothing_else",
        ],
    ),
    shown(
        "E12",
        "A proxy in front that nobody named, or one whose word has empty parts",
        &["a_proxy_that_nobody_named_is_told_of_once", "an_empty_part_of_a_proxys_word_says_nothing"],
    ),
    shown(
        "E13",
        "A secret with a `$` or a backslash in it",
        &["a_value_of_the_env_file_is_what_is_written", "a_value_is_what_is_written"],
    ),
    shown(
        "E14",
        "A byte order mark, quotes or a placeholder where a value should be",
        &[
            "an_env_file_may_begin_with_a_byte_order_mark",
            "a_files_byte_order_mark_is_no_part_of_its_value",
            "quotes_around_a_value_are_no_part_of_it",
            "the_placeholder_is_no_key",
            "the_example_of_an_env_file_as_it_is_does_not_start",
        ],
    ),
    shown(
        "E15",
        "A bad line or a misspelt name in `.env`, or a `.env` of another folder",
        &[
            "a_bad_line_of_an_env_file_is_named_by_its_number",
            "a_name_of_the_env_file_that_is_not_known_is_told_with_the_nearest_one",
            "an_env_file_of_a_folder_above_is_not_read",
        ],
    ),
    shown(
        "E16",
        "A secret in a parameter of the database's address",
        &["a_parameter_that_is_not_known_is_told_of_without_its_value"],
    ),
    shown(
        "E17",
        "PostgreSQL behind a pooler",
        &[
            "a_pooler_that_gives_each_transaction_another_session_is_refused_by_name",
            "a_pooler_in_session_mode_serves_200_turns_24_at_once",
        ],
    ),
    shown(
        "E18",
        "PostgreSQL without the TLS that is asked for",
        &["tls_that_the_server_does_not_offer_is_named", "what_tls_comes_to_is_no_outage"],
    ),
    noted(
        "E19",
        "A generator makes a client of the document",
        &["what_generators_make_of_the_document_compiles", "what_the_document_says_of_moments_is_taken"],
        "`make clients` generates, compiles and runs three",
    ),
    noted(
        "E20",
        "A token that is good for too long, or names several issuers",
        &["how_long_a_token_is_good_is_its_issuers_decision"],
        "Whoever has the key says for how long: `exp` in milliseconds is an issuer's mistake that nobody else can tell from intent. \
         Of several issuers one must be the one that is configured",
    ),
    noted(
        "E21",
        "Endpoints of Kubernetes lag behind the end of a container",
        &[],
        "Documented: a `preStop` sleep needs no shell, and a delay of the service's own would hold up every other end",
    ),
    noted(
        "E22",
        "A preflight for a private network",
        &["a_preflight_needs_no_key_and_opens_no_private_network"],
        "Not granted, as with FastAPI; browsers ask their users instead",
    ),
    noted(
        "E23",
        "A fragment in a request's address",
        &["a_fragment_in_an_address_is_dropped"],
        "The HTTP library drops it before anything is decided",
    ),
];
