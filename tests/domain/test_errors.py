from cotenant.domain import errors, nodes
from cotenant.domain.errors import CotenantError

# Clients compare them: renaming a class must not change one.
_CODES = """
error usage bad_quantity bad_device_spec unknown_device unknown_node bad_recipe bad_split bad_setting
bad_hub_name bad_trace insecure_bind port_taken model_file model_file_missing not_a_model_file
corrupt_model_file split_part_missing unsupported_model_file does_not_fit cannot_move store
daemon_silent unit_fault mps mps_missing mps_failed hub hub_silent not_on_hub no_room_on_disk
pull_failed service compose_file container_engine_missing generated_file_edited generated_file_failed
engine engine_missing engine_lacks_device engine_load_failed engine_load_timeout engine_died engine_hung
engine_install_failed request bad_request request_too_large headers_too_large unsupported_media_type
unauthorized forbidden too_many_attempts foreign_page untrusted_host header_incomplete header_gone
bad_assignment apply_running nothing_to_roll_back model_not_found unknown_lease unknown_key wrong_kind
not_offered unknown_route method_not_allowed queue_full quota_exceeded wait_timeout crashes_engine
model_unloaded answer_timeout upstream_failed too_many_connections shutting_down
"""


def test_every_error_has_the_code_that_clients_know_it_by() -> None:
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    assert [each.code for each in classes if issubclass(each, CotenantError)] == _CODES.split()


def test_so_has_every_error_about_nodes() -> None:
    classes = [each for each in vars(nodes).values() if isinstance(each, type)]
    codes = "error node node_unreachable agent_gone bad_node_message wrong_protocol stale_epoch lease_over"
    assert [each.code for each in classes if issubclass(each, CotenantError)] == codes.split()
