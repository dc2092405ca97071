//! What becomes of the process, its disk and its clock.

use super::{Row, noted, shown};

pub const ROWS: &[Row] = &[
    noted(
        "P1",
        "kill -9 of one instance among several",
        &[],
        "Streams are one process's own; there is no log that instances share",
    ),
    noted(
        "P2",
        "kill -9 of the only instance",
        &[
            "after_a_kill_at_any_moment_each_save_is_there_wholly_or_not_at_all",
            "what_was_left_half_way_does_not_lock_its_conversation_for_ever",
        ],
        "Streams are gone (404); conversations are whole. Of usage, the last second may be lost",
    ),
    noted(
        "P3",
        "The process is stopped for a while and goes on",
        &["an_append_needs_the_right_last_entry_and_a_running_stream"],
        "Nobody takes its streams over meanwhile, so there is nobody to be fenced from; every append compares all the same",
    ),
    noted(
        "P4",
        "SIGTERM with streams running",
        &[
            "of_200_live_streams_those_that_finish_are_whole_and_the_others_say_so",
            "a_running_answer_finishes_and_new_connections_are_refused",
            "what_does_not_finish_within_the_grace_is_left_behind",
            "an_answer_that_outlives_the_grace_ends_with_an_error_and_a_close_frame",
        ],
        "There is no second address for readiness: the port closes at once",
    ),
    shown("P5", "A second signal", &["sigterm_lets_a_running_answer_finish_and_a_second_one_does_not_wait"]),
    shown(
        "P6",
        "A panic",
        &["a_panic_is_a_500_in_the_form_of_every_error", "a_stream_whose_producer_panics_ends_with_an_error"],
    ),
    shown(
        "P7",
        "The disk is full",
        &[
            "on_a_full_disk_saves_get_507_all_else_goes_on_and_room_mends_it_without_a_restart",
            "on_a_full_disk_it_does_not_start_and_says_what_is_missing",
        ],
    ),
    shown(
        "P8",
        "kill -9 in the middle of a write",
        &[
            "after_a_kill_at_any_moment_each_save_is_there_wholly_or_not_at_all",
            "a_file_of_which_only_the_beginning_was_made_is_finished",
        ],
    ),
    shown(
        "P9",
        "A database that is broken, newer, locked, read-only or not there",
        &[
            "a_damaged_file_is_refused_and_stays_as_it_is",
            "damage_to_any_page_is_found_before_anything_is_written",
            "tables_of_another_version_are_refused_and_stay_as_they_are",
            "the_database_of_another_program_is_refused_and_stays_as_it_is",
            "a_file_with_a_write_lock_is_refused",
            "a_lock_that_comes_later_costs_saves_503_reads_nothing_and_goes_without_a_trace",
            "a_read_only_file_system_is_refused",
            "what_this_user_may_not_write_is_refused",
            "a_directory_or_a_place_that_cannot_be_made_is_refused",
        ],
    ),
    noted(
        "P10",
        "fsync fails",
        &[],
        "SQLite reports it as a failed commit, and a save that was not committed is not acknowledged. Making fsync fail needs a file system of the test's own",
    ),
    noted(
        "P11",
        "The clock jumps",
        &["a_token_must_be_ours_and_in_time_by_a_minute"],
        "Timers are monotonic and ids of events are counted; only tokens and the day of usage look at the clock. Moving a \
         machine's clock is not for a test",
    ),
    shown(
        "P12",
        "Descriptors run out",
        &[
            "descriptors_that_run_out_are_waited_for",
            "beyond_the_connections_there_can_be_one_is_refused_at_once_and_health_is_answered",
        ],
    ),
    shown(
        "P13",
        "Streams want more memory than there is for them",
        &[
            "running_streams_are_bounded_and_ended_ones_give_way",
            "ended_streams_expire_and_give_way_and_running_ones_do_neither",
            "when_the_log_is_full_the_largest_running_stream_ends_with_its_text_so_far",
            "a_stream_that_is_too_much_for_the_log_alone_ends_with_its_text_so_far",
            "a_question_that_waits_counts_until_its_answer_begins",
            "what_is_counted_is_there_as_long_as_the_stream_and_no_longer",
            "who_never_reads_to_the_end_keeps_an_ended_stream_for_a_moment_only",
        ],
    ),
    noted(
        "P14",
        "A hundred thousand ended streams",
        &["ended_streams_expire_and_give_way_and_running_ones_do_neither"],
        "`cargo bench` measures what one takes",
    ),
    shown(
        "P15",
        "More requests than can be answered",
        &[
            "beyond_the_room_there_is_503_at_once_and_what_is_public_still_answers",
            "a_place_is_free_again_when_it_is_dropped_and_one_too_many_takes_none",
            "asking_how_the_service_is_takes_no_place",
            "bodies_that_are_being_read_share_their_room_and_nobody_has_more_than_a_quarter",
            "no_more_counts_run_at_once_than_processors_and_whoever_left_keeps_the_turn",
            "small_writes_wait_for_one_large_one_at_most_and_those_of_one_conversation_stay_in_order",
        ],
    ),
    noted(
        "P16",
        "Everybody comes back at once after a restart",
        &["of_200_live_streams_those_that_finish_are_whole_and_the_others_say_so"],
        "Readers are told different times. A replay is a copy from memory, so it has no limit of its own",
    ),
    noted(
        "P17",
        "A wrong configuration",
        &[
            "without_a_key_it_does_not_start_and_says_everything_that_is_wrong",
            "every_mistake_is_reported_at_once_and_no_secret_with_it",
            "every_mistake_names_its_place_and_no_secret",
        ],
        "Exit code 64. Variables have no prefix of ours, so unknown ones cannot be told from others'",
    ),
    shown("P18", "The port is taken", &["a_port_in_use_is_an_error_that_names_it"]),
    shown("P19", "Nobody reads the log", &["a_blocked_destination_drops_lines_instead_of_blocking_and_says_how_many"]),
    noted(
        "P20",
        "Two versions at once",
        &[],
        "Instances share nothing but the database, which refuses an older program",
    ),
    noted(
        "P21",
        "The upstream's key changes",
        &["a_running_answer_finishes_and_new_connections_are_refused"],
        "Keys are read at start; an orderly restart loses no running answer. Two keys may stand side by side meanwhile",
    ),
    shown(
        "P22",
        "More connections than there can be",
        &[
            "beyond_the_connections_there_can_be_one_is_refused_at_once_and_health_is_answered",
            "connections_that_say_nothing_keep_health_from_nobody",
            "the_connection_that_was_idle_longest_makes_room",
            "a_websocket_takes_the_place_of_its_connection",
        ],
    ),
    shown(
        "P23",
        "A shell or a unit that gives few open files",
        &[
            "the_soft_limit_on_open_files_is_raised_to_the_hard_one",
            "with_1024_open_files_the_last_reader_is_refused_at_once_and_health_is_answered",
            "more_connections_than_open_files_allow_are_warned_of_and_others_are_named",
        ],
    ),
    shown(
        "P24",
        "A copy of the database while turns are stored",
        &["a_copy_made_while_turns_are_stored_has_all_that_was_acknowledged_before", "what_cannot_be_copied_is_said"],
    ),
    shown("P25", "Signals that mean something else", &["signals_that_mean_something_else_end_nothing"]),
];
