-- Reads a JSON body through one scratch memory that stays: Lua strings of a megabyte cost page faults, not cycles.
-- Offsets are 0-based; `last` is inclusive. Nothing here yields, so one scratch serves all requests of a worker.
local ffi, string, table, tonumber, math = require "ffi", string, table, tonumber, math
ffi.cdef "void *memchr(const void *, int, size_t); void *memmove(void *, const void *, size_t);"
local C, char, gsub = ffi.C, string.char, string.gsub
local bytes = ffi.typeof("uint8_t *")
local PIECE = 65536                         -- below LuaJIT's threshold for memory of its own from the kernel
local memory = ffi.new("uint8_t[?]", 2 * PIECE)
local capacity, owner, turn = 2 * PIECE, nil, 0
local M = {}

function M.next() turn = turn + 1; return string.format("%d", turn) end -- names the request whose bytes lie in the scratch

function M.load(body, who)                  -- the body's bytes into the scratch, unless they still are there; returns the length
  local n = body:length()
  if who and who == owner then return n end
  owner = nil
  if n + 4096 > capacity then capacity = 2 * n + 4096; memory = ffi.new("uint8_t[?]", capacity) end
  for at = 0, n - 1, PIECE do
    local size = math.min(PIECE, n - at)
    ffi.copy(memory + at, body:getBytes(at, size), size)
  end
  owner = who
  return n
end

local function skip_space(p, i, n)
  while i < n do
    local c = p[i]
    if c ~= 32 and c ~= 10 and c ~= 13 and c ~= 9 then return i end
    i = i + 1
  end
end

local function skip_string(p, i, n)         -- i at the opening quote; returns the index of the closing one
  while true do
    local q = ffi.cast(bytes, C.memchr(p + i + 1, 34, n - i - 1))
    if q == nil then return nil end
    i = tonumber(q - p)
    local k = i - 1
    while p[k] == 92 do k = k - 1 end
    if (i - k) % 2 == 1 then return i end   -- an even number of backslashes stands before it
  end
end

local function skip_value(p, i, n)          -- i at the first byte of a value; returns the index of its last byte
  local c = p[i]
  if c == 34 then return skip_string(p, i, n) end
  if c == 123 or c == 91 then
    local depth = 0
    while i < n do
      c = p[i]
      if c == 34 then i = skip_string(p, i, n); if not i then return nil end
      elseif c == 123 or c == 91 then depth = depth + 1
      elseif c == 125 or c == 93 then depth = depth - 1; if depth == 0 then return i end end
      i = i + 1
    end
    return nil
  end
  local first = i
  while i < n do
    c = p[i]
    if c == 44 or c == 125 or c == 93 or c <= 32 then return i > first and i - 1 or nil end
    i = i + 1
  end
end

local function utf8(c)
  if c < 0x80 then return char(c) end
  if c < 0x800 then return char(0xC0 + math.floor(c / 64), 0x80 + c % 64) end
  if c < 0x10000 then return char(0xE0 + math.floor(c / 4096), 0x80 + math.floor(c / 64) % 64, 0x80 + c % 64) end
  return char(0xF0 + math.floor(c / 262144), 0x80 + math.floor(c / 4096) % 64, 0x80 + math.floor(c / 64) % 64, 0x80 + c % 64)
end
local PLAIN = {["b"] = "\b", ["f"] = "\f", ["n"] = "\n", ["r"] = "\r", ["t"] = "\t"}
local function unescape(v)                  -- one user written two ways must be one unit
  local at = string.find(v, "\\", 1, true)
  if not at then return v end
  local out, from = {}, 1
  while at do
    out[#out + 1] = string.sub(v, from, at - 1)
    local c = string.sub(v, at + 1, at + 1)
    local code = c == "u" and tonumber(string.match(v, "^%x%x%x%x", at + 2) or "", 16)
    if code then
      from = at + 6
      if code >= 0xD800 and code < 0xDC00 then
        local low = tonumber(string.match(v, "^\\u([dD][c-fC-F]%x%x)", from) or "", 16)
        if low then code = 0x10000 + (code - 0xD800) * 1024 + low - 0xDC00; from = from + 6 end
      end
      out[#out + 1] = utf8(code)
    else
      out[#out + 1] = PLAIN[c] or c; from = at + 2
    end
    at = string.find(v, "\\", from, true)
  end
  out[#out + 1] = string.sub(v, from)
  return table.concat(out)
end

M.unescape = unescape

-- The top-level members of the n bytes in the scratch: {name = first byte}, {name = last byte}, the index of the opening
-- brace, and whether "model" stands there twice; nil when they are no JSON object. Of other duplicates the last one wins.
function M.top(n)
  local p = memory + 0
  local open = skip_space(p, 0, n); if not open or p[open] ~= 123 then return nil end
  local firsts, lasts, twice, i, begun = {}, {}, false, open + 1, false
  while true do
    i = skip_space(p, i, n); if not i then return nil end
    if p[i] == 125 then
      if skip_space(p, i + 1, n) then return nil end
      return firsts, lasts, open, twice
    end
    if begun then
      if p[i] ~= 44 then return nil end
      i = skip_space(p, i + 1, n); if not i then return nil end
    end
    if p[i] ~= 34 then return nil end
    local k2 = skip_string(p, i, n); if not k2 then return nil end
    local key = k2 - i < 256 and unescape(ffi.string(p + i + 1, k2 - i - 1)) or ""
    local colon = skip_space(p, k2 + 1, n); if not colon or p[colon] ~= 58 then return nil end
    local v1 = skip_space(p, colon + 1, n); if not v1 then return nil end
    local v2 = skip_value(p, v1, n); if not v2 then return nil end
    if key == "model" and firsts.model then twice = true end
    firsts[key], lasts[key] = v1, v2
    i, begun = v2 + 1, true
  end
end

function M.text(first, last) return ffi.string(memory + first, last - first + 1) end
function M.is_string(first) return memory[first] == 34 end

-- A JSON string decoded, a number as written; nil for anything else or an empty string.
function M.scalar(first, last)
  local c = memory[first]
  if c == 34 then return last > first + 1 and unescape(ffi.string(memory + first + 1, last - first - 1)) or nil end
  return (c == 45 or c >= 48 and c <= 57) and M.text(first, last) or nil
end

local function replace(n, first, last, text)
  local grow = #text - (last - first + 1)
  assert(n + grow <= capacity, "no room for the edits")
  if grow ~= 0 then C.memmove(memory + last + 1 + grow, memory + last + 1, n - last - 1) end
  ffi.copy(memory + first, text, #text)
  return n + grow
end

-- Replaces one or two spans that do not overlap; returns the whole text. The later one first, so that the other's offsets stay true.
function M.splice(n, first, last, text, a, b, more)
  owner = nil
  if not a then return ffi.string(memory, replace(n, first, last, text)) end
  if a > first then n = replace(n, a, b, more); return ffi.string(memory, replace(n, first, last, text)) end
  n = replace(n, first, last, text)
  return ffi.string(memory, replace(n, a, b, more))
end
return M
