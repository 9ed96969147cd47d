-- Keep the state as it was after one of the journal's entries, and forget entries before the state kept before.
--
-- KEYS    as append.lua has them
-- ARGV    1 id of the last entry that the state knows
--         2 the state

local journal, about = KEYS[1], KEYS[2]
local kept = redis.call('HGET', about, 'kept') or '0'
local entry = ARGV[1] .. '-0'
if tonumber(ARGV[1]) <= tonumber(kept) or #redis.call('XRANGE', journal, entry, entry) == 0 then
  return 0 -- somebody kept a later one, or the state is that of a journal which the server has lost
end
redis.call('HSET', about, 'kept', ARGV[1], 'snapshot', ARGV[2], 'pruned', kept)
return redis.call('XTRIM', journal, 'MINID', kept .. '-0')
