/**
 * The vault on a file system that forgets, tears and reorders what was not synced: whatever was
 * acknowledged is there afterwards, whole, and the vault opens, verifies and goes on. Each seed is
 * one life of a vault with several cuts; `ROUSE_SEEDS=5000` lives more of them, `ROUSE_SEED=17` one.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openDirectoryStore } from '#src/blobs/directory-store.ts';
import { ForgetfulFiles } from '#src/testing/forgetful-files.ts';
import {
  backUp,
  diskBytes,
  readWhole,
  smallBlockBytes,
  vaultWorld,
} from '#src/testing/vault-world.ts';
import type { Saveset } from '#src/vault/api.ts';
import type { OpenedVault } from '#src/vault/vault.ts';

const only = process.env['ROUSE_SEED'];
const seeds = Number(process.env['ROUSE_SEEDS'] ?? 150);
const cutsPerLife = 4;

interface Acknowledged {
  readonly saveset: Saveset;
  readonly bytes: Buffer;
}

class Life {
  files: ForgetfulFiles;
  readonly acknowledged: Acknowledged[] = [];
  cuts = 0;

  constructor(seed: number) {
    this.files = new ForgetfulFiles(seed);
  }

  get #random() {
    return this.files.random;
  }

  /** Runs until the machine stops, or some backups are done; then the power goes. */
  async untilCut(): Promise<void> {
    const { files } = this;
    files.stopAfter(1 + this.#random.below(this.acknowledged.length === 0 ? 120 : 60));
    let vault: OpenedVault | undefined;
    try {
      vault = await this.#open();
      await this.#checkAll(vault);
      for (let i = 0; i < 4; i++) await this.#backUp(vault);
      if (this.#random.chance(0.3)) await vault.rescan();
      if (this.#random.chance(0.5)) await vault.close();
    } catch (error) {
      if (!files.stopped) throw error;
      this.cuts++;
    }
    this.files = this.#random.chance(0.5) ? files.crash() : files.kill();
    await vault?.close().catch(() => undefined);
  }

  async #open(): Promise<OpenedVault> {
    const { files } = this;
    const random = this.#random;
    const store = await openDirectoryStore({ files, directory: '/data/vault', random });
    const seed = random.below(2 ** 30);
    const world = await vaultWorld({ store, files, seed });
    return world.open({ owner: { name: random.id(), isAlive: () => false } });
  }

  /** A new disk, or a few blocks changed in an old one. */
  async #backUp(vault: OpenedVault): Promise<void> {
    const random = this.#random;
    const old = random.chance(0.6) && this.acknowledged.length > 0;
    const base = old ? random.pick(this.acknowledged) : undefined;
    let bytes: Buffer;
    let saveset: Saveset;
    if (base === undefined) {
      bytes = diskBytes(random, random.below(60) * smallBlockBytes + random.below(100));
      saveset = await backUp(vault, { vda: bytes });
    } else {
      bytes = Buffer.from(base.bytes);
      saveset = await this.#incremental(vault, base, bytes);
    }
    this.acknowledged.push({ saveset, bytes });
  }

  async #incremental(vault: OpenedVault, base: Acknowledged, bytes: Buffer): Promise<Saveset> {
    const random = this.#random;
    const writer = await vault.begin('main');
    const disk = writer.disk('vda', bytes.length, 'test', base.saveset.disks[0]?.root);
    for (let i = 0; i < 3 && bytes.length >= smallBlockBytes; i++) {
      const at = random.below(Math.floor(bytes.length / smallBlockBytes)) * smallBlockBytes;
      const change = diskBytes(random, smallBlockBytes);
      change.copy(bytes, at);
      await disk.write(at, change);
    }
    const {
      id: _id,
      mtree: _mtree,
      disks: _disks,
      files: _files,
      cost: _cost,
      ...header
    } = base.saveset;
    return writer.seal({ ...header, kind: 'incremental', basedOn: base.saveset.id });
  }

  async #checkAll(vault: OpenedVault): Promise<void> {
    assert.deepEqual(vault.problems, []);
    const listed = new Set((await vault.savesets()).map((saveset) => saveset.id));
    for (const { saveset, bytes } of this.acknowledged) {
      assert.ok(listed.has(saveset.id), `saveset ${saveset.id} is lost`);
      const root = saveset.disks[0]?.root;
      assert.ok(root !== undefined && (await readWhole(vault, root)).equals(bytes));
    }
    const report = await vault.verify();
    assert.equal(report.ok, true, JSON.stringify(report));
  }

  /** After the last cut, with no more of them. */
  async checkInPeace(): Promise<void> {
    const vault = await this.#open();
    await this.#checkAll(vault);
    await this.#backUp(vault);
    await vault.close();
    const again = await this.#open();
    await this.#checkAll(again);
    await again.close();
  }
}

async function live(seed: number): Promise<{ cuts: number; savesets: number }> {
  const life = new Life(seed);
  for (let i = 0; i < cutsPerLife; i++) await life.untilCut();
  await life.checkInPeace();
  return { cuts: life.cuts, savesets: life.acknowledged.length };
}

test('nothing acknowledged is lost in a power cut or a kill', { timeout: 600_000 }, async (t) => {
  const list = only === undefined ? Array.from({ length: seeds }, (_, i) => i) : [Number(only)];
  let cuts = 0;
  let savesets = 0;
  for (const seed of list) {
    try {
      const ended = await live(seed);
      cuts += ended.cuts;
      savesets += ended.savesets;
    } catch (error) {
      throw new Error(`seed ${seed} (again: ROUSE_SEED=${seed})`, { cause: error });
    }
  }
  t.diagnostic(`${list.length} lives, ${cuts} cuts in the middle of work, ${savesets} savesets`);
  if (only === undefined) assert.ok(cuts > list.length, 'most lives must be cut in their work');
});
