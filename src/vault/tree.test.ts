import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import type { DiskRoot } from './api.ts';
import { idBytes, idKey, isZeroId, keyedHash, zeroId } from './hash.ts';
import { blocksBelow, treeShape } from './shape.ts';
import { countBlocks, difference } from './tree-walk.ts';
import { rootOf, TreeWriter, type TreeStore } from './tree-writer.ts';

/** Fan-out 128: three levels from 16,385 blocks on. */
const blockBytes = 4096;
const hash = keyedHash(Buffer.alloc(32, 1));

class MemoryTreeStore implements TreeStore {
  readonly nodes = new Map<string, Buffer>();
  stored = 0;

  async read(id: Buffer): Promise<Buffer> {
    const node = this.nodes.get(idKey(id));
    assert.ok(node, 'a node that was never stored is read');
    return Buffer.from(node);
  }

  async store(node: Buffer): Promise<Buffer> {
    assert.ok(!node.equals(Buffer.alloc(blockBytes)), 'a node of zeros is a hole');
    const id = hash(node);
    this.nodes.set(idKey(id), Buffer.from(node));
    this.stored++;
    return id;
  }
}

/** A disk as a plain map: block -> id. */
type Model = Map<number, Buffer>;

function idOf(value: number): Buffer {
  return value === 0 ? zeroId : hash(Buffer.from(`block ${value}`));
}

async function blocksOf(store: TreeStore, root: DiskRoot): Promise<Model> {
  const found: Model = new Map();
  const walk = async (id: Buffer, level: number, first: number): Promise<void> => {
    if (isZeroId(id)) return;
    if (level === 0) return void found.set(first, Buffer.from(id));
    const node = await store.read(id);
    const span = blocksBelow(blockBytes / idBytes, level - 1);
    for (let child = 0; child < blockBytes / idBytes; child++)
      await walk(node.subarray(child * 32, child * 32 + 32), level - 1, first + child * span);
  };
  if (root.hash !== '') await walk(Buffer.from(root.hash, 'hex'), root.depth, 0);
  return found;
}

type Step =
  | { readonly kind: 'set'; readonly block: number; readonly value: number }
  | { readonly kind: 'zero'; readonly from: number; readonly blocks: number };

const sizes = fc.constantFrom(0, 1, 100, 128, 129, 1000, 16_384, 16_385, 40_000);
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('set' as const),
      block: fc.nat(50_000),
      value: fc.nat(5),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('zero' as const),
      from: fc.nat(50_000),
      blocks: fc.nat(20_000),
    }),
  },
);

async function apply(
  store: MemoryTreeStore,
  blocks: number,
  steps: readonly Step[],
  model: Model,
  base?: { root: DiskRoot; referencedBlocks: number | undefined },
) {
  const tree = new TreeWriter(store, blocks * blockBytes, blockBytes, base);
  for (const [block] of model) if (block >= blocks) model.delete(block);
  for (const one of steps) {
    if (blocks === 0) break;
    if (one.kind === 'set') {
      const block = one.block % blocks;
      tree.set(block, idOf(one.value));
      if (one.value === 0) model.delete(block);
      else model.set(block, idOf(one.value));
      if (tree.isCrowded) await tree.settle();
    } else {
      const from = one.from % blocks;
      const to = Math.min(blocks, from + one.blocks);
      await tree.zero(from, to);
      for (const [block] of model) if (block >= from && block < to) model.delete(block);
    }
  }
  const root = rootOf(await tree.finish(), tree.shape, blocks * blockBytes);
  return { root, referenced: tree.referencedBlocks };
}

test('a tree is what was set, through bases of other sizes, and its hash knows no history', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(sizes, fc.array(step, { maxLength: 60 })), { minLength: 1, maxLength: 3 }),
      async (rounds) => {
        const store = new MemoryTreeStore();
        const model: Model = new Map();
        let base: { root: DiskRoot; referencedBlocks: number | undefined } | undefined;
        for (const [blocks, steps] of rounds) {
          const { root, referenced } = await apply(store, blocks, steps, model, base);
          const found = await blocksOf(store, root);
          assert.deepEqual(sorted(found), sorted(model));
          const count = await countBlocks(root, blockBytes, (id) => store.read(id));
          assert.equal(count, model.size);
          if (referenced !== undefined) assert.equal(referenced, model.size);
          const fresh = new TreeWriter(store, blocks * blockBytes, blockBytes);
          for (const [block, id] of model) fresh.set(block, id);
          assert.equal(rootOf(await fresh.finish(), fresh.shape, root.sizeBytes).hash, root.hash);
          base = { root, referencedBlocks: count };
        }
      },
    ),
    { numRuns: 60 },
  );
});

function sorted(model: Model): [number, string][] {
  return [...model]
    .map(([block, id]): [number, string] => [block, id.toString('hex')])
    .sort((a, b) => a[0] - b[0]);
}

test('a change writes the changed path only', async () => {
  const store = new MemoryTreeStore();
  const model: Model = new Map();
  const blocks = 40_000;
  const all = Array.from({ length: blocks }, (_, block): Step => ({
    kind: 'set',
    block,
    value: 1 + (block % 7),
  }));
  const first = await apply(store, blocks, all, model);
  assert.equal(first.root.depth, 3);
  store.stored = 0;
  const base = { root: first.root, referencedBlocks: blocks };
  const second = await apply(
    store,
    blocks,
    [{ kind: 'set', block: 33_000, value: 99 }],
    model,
    base,
  );
  assert.equal(store.stored, 3);
  const ranges = [];
  const read = (id: Buffer) => store.read(id);
  for await (const range of difference(first.root, second.root, blockBytes, read))
    ranges.push(range);
  assert.deepEqual(ranges, [{ offset: 33_000 * blockBytes, length: blockBytes, zero: false }]);
});

test('difference names exactly the blocks that differ, also between disks of other sizes', async () => {
  await fc.assert(
    fc.asyncProperty(
      sizes,
      sizes,
      fc.array(step, { maxLength: 30 }),
      fc.array(step, { maxLength: 30 }),
      async (blocksA, blocksB, stepsA, stepsB) => {
        const store = new MemoryTreeStore();
        const [a, b]: [Model, Model] = [new Map(), new Map()];
        const one = await apply(store, blocksA, stepsA, a);
        const other = await apply(store, blocksB, stepsB, b);
        const expected = new Set<string>();
        for (const block of new Set([...a.keys(), ...b.keys()])) {
          const [x, y] = [a.get(block) ?? zeroId, b.get(block) ?? zeroId];
          if (!x.equals(y)) expected.add(`${block} ${isZeroId(y)}`);
        }
        const found = new Set<string>();
        const read = (id: Buffer) => store.read(id);
        for await (const { offset, length, zero } of difference(
          one.root,
          other.root,
          blockBytes,
          read,
        ))
          for (let at = offset; at < offset + length; at += blockBytes)
            found.add(`${at / blockBytes} ${zero}`);
        assert.deepEqual(found, expected);
      },
    ),
    { numRuns: 60 },
  );
});

test('shapes', () => {
  assert.equal(treeShape(0, 32768).depth, 0);
  assert.equal(treeShape(32768, 32768).depth, 0);
  assert.equal(treeShape(32769, 32768).depth, 1);
  assert.equal(treeShape(32 << 20, 32768).depth, 1);
  assert.equal(treeShape((32 << 20) + 1, 32768).depth, 2);
  assert.equal(treeShape(16 * 2 ** 40, 32768).depth, 3);
});
