-- What time it is where the key lies.
-- KEYS: any. ARGV: clock.
return {seconds(now())}
