-- One step of an account's journal: enter lines, all or none.
--
-- The journal is a stream. An entry's id is the server's clock in microseconds when it was entered, moved on where
-- that is needed to make ids rise. So ids are stamps, and none is given twice, even by a server that forgot the first.
--
-- KEYS    1 the journal
--         2 what is known about it, a hash
--             newest    id of its last entry
--             tight     id of the last entry that may leave less room, reservations aside
--             reserved  requests reserved in all
--             tokens    tokens reserved in all
--             kept      id of the last entry that the snapshot knows
--             snapshot  the state after it
--             pruned    entries before this one are gone
-- ARGV    1 id of the last entry that the caller knows, 0 if none
--         2 how many of the lines, from the first to the last that may leave less room, reservations aside; 0 if none
--         3 requests that the lines reserve
--         4 tokens that they reserve
--         5 requests that may have been reserved in all, to enter the lines; -1 to enter them in any case
--         6 tokens likewise
--         7 ... the lines
-- Returns the clock, the id of the first line entered or 0, the id of the last entry before them, requests and tokens
--         reserved in all, 1 if the journal does not hold what the caller knows, and, where the caller must begin
--         anew, the snapshot and the entries after it.
--
-- Entries that a caller has not read it reads by itself, right before, for they cost a script ten times as much. So
-- the cost depends neither on what the journal holds nor on what others entered.

local journal, about = KEYS[1], KEYS[2]
local known = tonumber(ARGV[1])

local found = redis.call('HMGET', about, 'newest', 'tight', 'reserved', 'tokens', 'pruned')
local newest, tight = tonumber(found[1] or 0), tonumber(found[2] or 0)
local reserved, tokens = tonumber(found[3] or 0), tonumber(found[4] or 0)
local pruned = tonumber(found[5] or 0)

local lost, anew, snapshot, entries = 0, false, false, {}
if known ~= newest or known == 0 then
  if known > 0 and known >= pruned then
    lost = newest == 0 and 1 or 1 - #redis.call('XRANGE', journal, known, known)
  end
  if known == 0 or known < pruned or lost == 1 then
    anew = true
    if redis.call('EXISTS', journal, about) == 1 then
      redis.call('DEL', journal, about) -- one is of no use without the other
      newest, tight, reserved, tokens = 0, 0, 0, 0
      lost = known == 0 and 0 or 1
    end
    local kept, first = redis.call('HMGET', about, 'kept', 'snapshot'), '-'
    if kept[1] then
      first, snapshot = '(' .. kept[1], kept[2]
    end
    entries = redis.call('XRANGE', journal, first, '+')
  end
end

local time = redis.call('TIME')
local clock = math.max(newest, time[1] * 1000000 + time[2])
local before, first = newest, 0
local barred = ARGV[5] ~= '-1' and (tight > known or reserved > tonumber(ARGV[5]) or tokens > tonumber(ARGV[6]))
if #ARGV > 6 and lost == 0 and not barred then
  first = math.max(newest + 1, clock)
  for n = 7, #ARGV do
    newest = first + n - 7
    if before == 0 then
      redis.call('XADD', journal, newest, 'entry', ARGV[n])
    elseif not redis.call('XADD', journal, 'NOMKSTREAM', newest, 'entry', ARGV[n]) then
      redis.call('DEL', about) -- the journal is gone, and this of no use without it
      return { { clock, 0, 0, 0, 0, 1 }, { false, {} } }
    end
  end
  if ARGV[2] ~= '0' then
    tight = first + ARGV[2] - 1
  end
  reserved, tokens = reserved + ARGV[3], tokens + ARGV[4]
  redis.call('HSET', about, 'newest', newest, 'tight', tight, 'reserved', reserved, 'tokens', tokens)
end
return { { clock, first, before, reserved, tokens, lost }, anew and { snapshot, entries } or false }
