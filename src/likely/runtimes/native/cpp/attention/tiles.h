// Which queries are attended together: a tile is a few queries of one piece of work, or of pieces whose first columns
// are the same slots, as those of forks are.  A block of 64 columns that several pieces share is then read once for all.
// Every query meets its own blocks in their order, so that no number depends on its company.
#pragma once
#include <algorithm>
#include <vector>

#include "storage.h"

// One piece of work: rows [first, first + count) of the call, and the slots that its queries share.
struct Piece {
  int32_t first, count;
  int32_t columns_at, columns;  // slots of the shared columns, in `Queries::slots`
};

// Every query has a list of columns, in the order of their positions: first `shared` slots of its piece's list, then its
// own (the path of a tree node).  Columns are taken in blocks of 64 counted from the text's beginning, so that a query's
// sums are made in one order however its text was cut, forked or drafted.
struct Queries {
  const Piece* pieces;
  int pieces_count;
  const int32_t* slots;     // of all columns of the call
  const int32_t* position;  // (n,)
  const int32_t* shared;    // (n,) how many of its piece's columns a query may see
  const int32_t* own_at;    // (n,) its own further columns, in `slots`
  const int32_t* own;       // (n,)
};

// What a query sees: columns low to high.
struct Seen {
  int low, high;
};
INLINE Seen seen_by(const Queries& q, int i, int window) {
  int all = q.shared[i] + q.own[i];
  if (window <= 0) return {0, all};
  return {std::max(0, q.position[i] - window + 1), std::min(all, q.position[i] + window)};
}

// Queries [first, last) of one piece; `common`: how many whole blocks of columns are those of the part before.
struct TilePart {
  int piece, first, last, common;
  int size() const { return last - first; }
};

struct AttentionTiles {
  struct Tile {
    int at, count;  // parts
  };
  std::vector<TilePart> parts;
  std::vector<Tile> tiles;
  const TilePart* parts_of(int tile) const { return &parts[tiles[tile].at]; }

  // Tiles of the rows `first` to `last` of a call; one piece's have at most `alone` queries.
  // threads: that take tiles of `kv_heads` heads each.  apart: pieces are not put together
  void make(const Queries& q, int first, int last, int alone, int window, int threads, const Shape& s, bool apart) {
    parts.clear();
    tiles.clear();
    std::vector<TilePart> few;
    int queries = 0;
    for (int p = 0; p < q.pieces_count; p++) {
      const int from = std::max(first, q.pieces[p].first), to = std::min(last, q.pieces[p].first + q.pieces[p].count);
      if (!apart && to > from && to - from < QUERIES && q.pieces[p].columns >= BLOCK) {
        few.push_back({p, from, to, 0});
        queries += to - from;
        continue;
      }
      cut(p, from, to, alone);
    }
    const int together = most_together(queries, threads, s);
    if (few.size() > 1 && together > 1) order_by_columns(q, few.data(), (int)few.size(), 0);
    for (size_t i = 0, stop; i < few.size(); i = stop) {
      int used = few[i].size();
      for (stop = i + 1; stop < few.size(); used += few[stop++].size())
        if (used + few[stop].size() > together || !pays(q, few[stop], window)) break;
      if (stop == i + 1) {
        cut(few[i].piece, few[i].first, few[i].last, alone);
        continue;
      }
      tiles.push_back({(int)parts.size(), (int)(stop - i)});
      parts.insert(parts.end(), few.begin() + i, few.begin() + stop);
    }
  }

 private:
  // Large tiles save the most reading, as long as every thread has some.
  static int most_together(int queries, int threads, const Shape& s) {
    const int enough = threads == 1 ? 1 : 2 * threads / s.kv_heads + 1;
    return std::min(queries / enough, s.most_queries());
  }
  void cut(int piece, int first, int last, int most) {
    for (int from = first; from < last; from += most) {
      tiles.push_back({(int)parts.size(), 1});
      parts.push_back({piece, from, std::min(from + most, last), 0});
    }
  }
  // Whether enough of what a part sees is shared to make up for tiles that are fewer and larger.
  static bool pays(const Queries& q, const TilePart& part, int window) {
    const Seen seen = seen_by(q, part.first, window);
    const int shared = std::min(part.common * BLOCK, seen.high) - seen.low;
    return shared >= BLOCK && 4 * shared >= seen.high - seen.low;
  }
  // Parts that share columns become neighbours; all of them share the blocks before `block`.
  static void order_by_columns(const Queries& q, TilePart* parts, int count, int block) {
    while (count > 1) {
      const Piece& one = q.pieces[parts->piece];
      const int end = (block + 1) * BLOCK;
      const int32_t* columns = q.slots + one.columns_at + block * BLOCK;
      TilePart* others = std::partition(parts + 1, parts + count, [&](const TilePart& part) {
        const Piece& other = q.pieces[part.piece];
        const int32_t* theirs = q.slots + other.columns_at + block * BLOCK;
        return one.columns >= end && other.columns >= end && *theirs == *columns &&
               memcmp(theirs, columns, BLOCK * sizeof(int32_t)) == 0;
      });
      const int rest = (int)(parts + count - others);
      if (rest) {
        others->common = block;
        order_by_columns(q, others, rest, block);
      }
      for (TilePart* part = parts + 1; part < others; part++) part->common = block + 1;
      count -= rest;
      block++;
    }
  }
};
