CONCAT('Sort: ', IF(`text` IS NULL, '', `text`), ' (', IF(`n` IS NULL, 'none', IF(`n` IS NULL, '', CAST(`n` AS STRING))), ')')
LEFT(TO_HEX(SHA256(CONCAT('t1:n', IF(`n` IS NULL, 'z0:', CONCAT('n', CAST(BYTE_LENGTH(CAST(`n` AS STRING)) AS STRING), ':', CAST(`n` AS STRING))), 't4:text', IF(`text` IS NULL, 'z0:', CONCAT('t', CAST(BYTE_LENGTH(`text`) AS STRING), ':', `text`))))), 32)
CONCAT('b1-0001', '-', REPEAT('0', GREATEST(0, 6 - LENGTH(CAST(_llm_request AS STRING)))), CAST(_llm_request AS STRING))
CONCAT('{"contents":[{"role":"user","parts":[{"text":', TO_JSON_STRING(_llm_prompt), '}]}],"systemInstruction":{"parts":[{"text":"Sort."}]},"generationConfig":{"maxOutputTokens":100},"labels":{"airflow_batch_llm_id":"', custom_id, '"}}')
