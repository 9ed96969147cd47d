-- One step of an account's journal: enter lines, all or none, and read what others entered since.
--
-- The journal is a stream. An entry's id is the server's clock in microseconds when it was entered, moved on where
-- that is needed to make ids rise. So ids are stamps, and none is given twice, even by a server that forgot the first.
--
-- KEYS    1 the journal
--         2 what is known about it, a hash
--             newest    id of its last entry
--             tight     id of the last entry that may leave less room
--             kept      id of the last entry that the snapshot knows
--             snapshot  the state after it
--             pruned    entries before this one are gone
-- ARGV    1 id of the last entry that the caller knows, 0 if none
--         2 how many of the lines, from the first to the last that may leave less room, 0 if none does
--         3 "1" to enter nothing if another such entry came after the one that the caller knows
--         4 ... the lines
-- Returns the clock, the id of the first line entered or 0, 1 if the journal does not hold what the caller knows,
--         the snapshot if the caller must begin with it, and the entries after it or after what the caller knows.
--
-- The cost depends on what is entered and read, not on how much the journal holds.

local journal, about = KEYS[1], KEYS[2]
local known = ARGV[1]

if redis.call('EXISTS', journal, about) == 1 then
  redis.call('DEL', journal, about) -- one is of no use without the other
end
local found = redis.call('HMGET', about, 'newest', 'tight', 'kept', 'pruned')
local newest, tight = tonumber(found[1] or 0), tonumber(found[2] or 0)
local kept, pruned = found[3], tonumber(found[4] or 0)

local lost, snapshot, entries = 0, false, {}
if known ~= found[1] then
  if known ~= '0' and tonumber(known) >= pruned then
    entries = redis.call('XRANGE', journal, known .. '-0', '+')
    if entries[1] and entries[1][1] == known .. '-0' then
      table.remove(entries, 1)
    else
      lost = 1
    end
  end
  if known == '0' or tonumber(known) < pruned or lost == 1 then
    local first = '-'
    if kept then
      first = '(' .. kept .. '-0'
      snapshot = redis.call('HGET', about, 'snapshot')
    end
    entries = redis.call('XRANGE', journal, first, '+')
  end
end

local time = redis.call('TIME')
local clock = math.max(newest, time[1] * 1000000 + time[2])
local first = 0
if #ARGV > 3 and lost == 0 and not (ARGV[3] == '1' and tight > tonumber(known)) then
  first = math.max(newest + 1, clock)
  newest = first + #ARGV - 4
  for n = 4, #ARGV do
    redis.call('XADD', journal, string.format('%.0f-0', first + n - 4), 'entry', ARGV[n])
  end
  if ARGV[2] ~= '0' then
    tight = first + ARGV[2] - 1
  end
  redis.call('HSET', about, 'newest', string.format('%.0f', newest), 'tight', string.format('%.0f', tight))
end
return { string.format('%.0f', clock), string.format('%.0f', first), lost, snapshot, entries }
