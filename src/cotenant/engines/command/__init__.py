"""Any server of OpenAI's API that the operator's command starts. Other kinds must not import it."""
