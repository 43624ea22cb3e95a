import assert from 'node:assert/strict';
import { nfsLimits } from '../../limits.ts';
import { NfsStatus } from '../file-system.ts';
import type { XdrWriter } from '../xdr.ts';
import { Procedure } from './types.ts';
import {
  directoryName,
  eachWay,
  fattr,
  noChange,
  postHandle,
  wcc,
} from '../../testing/nfs-conversation.ts';

/** All 22 procedures of NFSv3, spoken raw: results, failures and what each tells of its files. */

eachWay('GETATTR, SETATTR with and without a guard', async ({ nfs, create, getattr }) => {
  const file = await create('attributes');
  const set = (guard: [number, number] | undefined) =>
    nfs(Procedure.setattr, (args) => {
      args.opaque(file);
      for (const value of [1, 0o640, 1, 12, 1, 13, 1, 0, 5000]) args.u32(value);
      for (const value of [1, 2, 77, 5]) args.u32(value);
      if (guard === undefined) return args.u32(0);
      for (const value of [1, ...guard]) args.u32(value);
    });
  const { status, results } = await set(undefined);
  assert.equal(status, 0);
  const { before, after } = wcc(results);
  results.done();
  assert.equal(before?.sizeBytes, 0);
  assert.equal(after?.sizeBytes, 5000);
  const now = await getattr(file);
  assert.deepEqual([now.mode, now.uid, now.gid, now.type], [0o640, 12, 13, 1]);
  assert.deepEqual(now.modified, [77, 5]);
  assert.equal((await set([1, 1])).status, NfsStatus.notSync);
  assert.equal((await set(now.changed)).status, 0);
});

eachWay(
  'LOOKUP: found, missing, dot, dot-dot, wrong names, in a file',
  async ({ root, create, mkdir, lookup }) => {
    const directory = await mkdir('look');
    const file = await create('inside', directory);
    const found = await lookup('inside', directory);
    assert.equal(found.status, 0);
    assert.deepEqual(Buffer.from(found.results.opaque(64)), file);
    assert.equal(found.results.u32(), 1);
    assert.equal(fattr(found.results).type, 1);
    assert.equal(found.results.u32(), 1);
    assert.equal(fattr(found.results).type, 2);
    found.results.done();
    const missing = await lookup('nothing', directory);
    assert.equal(missing.status, NfsStatus.noent);
    assert.equal(missing.results.u32(), 1);
    fattr(missing.results);
    missing.results.done();
    assert.deepEqual(Buffer.from((await lookup('.', directory)).results.opaque(64)), directory);
    assert.deepEqual(Buffer.from((await lookup('..', directory)).results.opaque(64)), root);
    assert.deepEqual(Buffer.from((await lookup('..')).results.opaque(64)), root);
    assert.equal((await lookup('a/b')).status, NfsStatus.inval);
    assert.equal((await lookup('')).status, NfsStatus.inval);
    assert.equal((await lookup('x'.repeat(256))).status, NfsStatus.nametoolong);
    assert.equal((await lookup('x', file)).status, NfsStatus.notdir);
    assert.equal((await lookup('..', file)).status, NfsStatus.notdir);
  },
);

eachWay('ACCESS: root may all, others what the mode says', async ({ nfs, create }) => {
  const file = await create('access');
  const ask = async (uid: number) => {
    const { status, results } = await nfs(
      Procedure.access,
      (args) => {
        args.opaque(file);
        args.u32(0x3f);
      },
      uid,
    );
    assert.equal(status, 0);
    assert.equal(results.u32(), 1);
    fattr(results);
    const granted = results.u32();
    results.done();
    return granted;
  };
  assert.equal(await ask(0), 0x3f);
  assert.equal(await ask(99), 0x03);
});

eachWay(
  'READ and WRITE: bytes, eof, wcc, verifier, holes, 1 MiB',
  async ({ memory, root, create, write, read }) => {
    const file = await create('data');
    const data = Buffer.from('hello, datastore');
    const written = await write(file, 10, data);
    assert.equal(written.status, 0);
    const { before, after } = wcc(written.results);
    assert.equal(before?.sizeBytes, 0);
    assert.equal(after?.sizeBytes, 26);
    assert.equal(written.results.u32(), data.length);
    assert.equal(written.results.u32(), 2);
    assert.equal(written.results.u64(), memory.writeVerifier);
    written.results.done();
    const whole = await read(file, 0, 100);
    assert.deepEqual(whole.data, Buffer.concat([Buffer.alloc(10), data]));
    assert.equal(whole.eof, true);
    assert.equal(whole.attributes.sizeBytes, 26);
    const part = await read(file, 10, 5);
    assert.equal(part.data.toString(), 'hello');
    assert.equal(part.eof, false);
    assert.equal((await read(file, 21, 5)).eof, true);
    const beyond = await read(file, 5000, 10);
    assert.deepEqual([beyond.data.length, beyond.eof], [0, true]);
    const far = await read(file, 2 ** 60, 10);
    assert.deepEqual([far.data.length, far.eof], [0, true]);
    const big = Buffer.alloc(nfsLimits.transferBytesMax);
    for (let at = 0; at < big.length; at += 4) big.writeUInt32BE(at, at);
    assert.equal((await write(file, 3, big, 0)).status, 0);
    const back = await read(file, 3, 4 << 20);
    assert.equal(back.data.equals(big), true);
    assert.equal((await write(file, 2 ** 62, data)).status, NfsStatus.fbig);
    assert.equal((await write(file, 0, Buffer.alloc(0))).status, 0);
    assert.equal((await write(root, 0, data)).status, NfsStatus.isdir);
    assert.equal((await write(file, 9 << 20, data)).status, NfsStatus.nospc);
  },
);

eachWay('many READs and WRITEs in flight keep their own bytes', async ({ create, write, read }) => {
  const file = await create('mixed');
  const pages = Array.from({ length: 100 }, (_, page) => Buffer.alloc(4096, page + 1));
  const writes = pages.map((data, page) => write(file, page * 4096, data));
  for (const { status } of await Promise.all(writes)) assert.equal(status, 0);
  const reads = pages.flatMap((_, page) => [
    read(file, page * 4096, 4096),
    read(file, page * 4096 + 1, 3),
  ]);
  for (const [index, { data }] of (await Promise.all(reads)).entries()) {
    const page = Math.floor(index / 2);
    assert.equal(data.equals(Buffer.alloc(index % 2 === 0 ? 4096 : 3, page + 1)), true);
  }
});

eachWay('READ and WRITE: wrong arguments', async ({ client, root, late, nfs, create }) => {
  const wrongStable = await client.call(Procedure.write, (args) => {
    args.opaque(root);
    for (const value of [0, 0, 0, 3, 0]) args.u32(value);
  });
  assert.equal(wrongStable.status, 4);
  const file = await create('wrong');
  const { status } = await nfs(Procedure.write, (args) => {
    args.opaque(file);
    for (const value of [0, 0, 9, 2]) args.u32(value);
    args.opaque(Buffer.alloc(4));
  });
  assert.equal(status, NfsStatus.inval);
  const directory = await nfs(Procedure.read, (args) => {
    args.opaque(root);
    for (const value of [0, 0, 9]) args.u32(value);
  });
  assert.equal(directory.status, NfsStatus.isdir);
  // Attributes of a failure are told when they can be had without waiting.
  assert.equal(directory.results.u32(), late ? 0 : 1);
  if (!late) fattr(directory.results);
  directory.results.done();
});

eachWay('COMMIT answers with wcc and the verifier', async ({ memory, nfs, create, write }) => {
  const file = await create('committed');
  await write(file, 0, Buffer.from('x'), 0);
  const { status, results } = await nfs(Procedure.commit, (args) => {
    args.opaque(file);
    for (const value of [0, 0, 0]) args.u32(value);
  });
  assert.equal(status, 0);
  assert.equal(wcc(results).after?.sizeBytes, 1);
  assert.equal(results.u64(), memory.writeVerifier);
  results.done();
});

eachWay('CREATE: unchecked, guarded, exclusive', async ({ root, nfs }) => {
  const how = (name: string, rest: (args: XdrWriter) => void) =>
    nfs(Procedure.create, (args) => {
      directoryName(args, root, name);
      rest(args);
    });
  const guarded = (args: XdrWriter) => {
    args.u32(1);
    noChange(args);
  };
  const first = await how('created', guarded);
  assert.equal(first.status, 0);
  postHandle(first.results);
  assert.equal(first.results.u32(), 1);
  fattr(first.results);
  assert.notEqual(wcc(first.results).before, undefined);
  first.results.done();
  const again = await how('created', guarded);
  assert.equal(again.status, NfsStatus.exist);
  wcc(again.results);
  again.results.done();
  const exclusive = (verifier: bigint) => (args: XdrWriter) => {
    args.u32(2);
    args.u64(verifier);
  };
  assert.equal((await how('only', exclusive(5n))).status, 0);
  assert.equal((await how('only', exclusive(5n))).status, 0);
  assert.equal((await how('only', exclusive(6n))).status, NfsStatus.exist);
  assert.equal((await how('.', guarded)).status, NfsStatus.exist);
  assert.equal((await how('a\0b', guarded)).status, NfsStatus.inval);
});

eachWay('MKDIR, RMDIR, REMOVE', async ({ root, nfs, create, mkdir, getattr }) => {
  const directory = await mkdir('d');
  assert.equal((await getattr(directory)).type, 2);
  await create('f', directory);
  const gone = (procedure: number, name: string, from = root) =>
    nfs(procedure, (args) => directoryName(args, from, name));
  assert.equal((await gone(Procedure.rmdir, 'd')).status, NfsStatus.notempty);
  assert.equal((await gone(Procedure.remove, 'd')).status, NfsStatus.isdir);
  assert.equal((await gone(Procedure.rmdir, 'f', directory)).status, NfsStatus.notdir);
  const removed = await gone(Procedure.remove, 'f', directory);
  assert.equal(removed.status, 0);
  assert.notEqual(wcc(removed.results).before, undefined);
  removed.results.done();
  assert.equal((await gone(Procedure.remove, 'f', directory)).status, NfsStatus.noent);
  assert.equal((await gone(Procedure.rmdir, '.')).status, NfsStatus.inval);
  assert.equal((await gone(Procedure.rmdir, '..')).status, NfsStatus.exist);
  assert.equal((await gone(Procedure.rmdir, 'd')).status, 0);
  const stale = await nfs(Procedure.getattr, (args) => args.opaque(directory));
  assert.equal(stale.status, NfsStatus.stale);
});

eachWay('SYMLINK, READLINK', async ({ root, nfs }) => {
  const make = (name: string, target: string) =>
    nfs(Procedure.symlink, (args) => {
      directoryName(args, root, name);
      noChange(args);
      args.text(target);
    });
  const made = await make('pointer', 'some/where');
  assert.equal(made.status, 0);
  const handle = postHandle(made.results);
  const { status, results } = await nfs(Procedure.readlink, (args) => args.opaque(handle));
  assert.equal(status, 0);
  assert.equal(results.u32(), 1);
  assert.equal(fattr(results).type, 5);
  assert.equal(results.text(100), 'some/where');
  results.done();
  const long = await make('long', 'y'.repeat(4096));
  const longHandle = postHandle(long.results);
  const back = await nfs(Procedure.readlink, (args) => args.opaque(longHandle));
  assert.equal(back.status, 0);
  assert.equal((await make('longer', 'y'.repeat(4097))).status, NfsStatus.nametoolong);
  assert.equal((await make('pointer', 'x')).status, NfsStatus.exist);
  const wrong = await nfs(Procedure.readlink, (args) => args.opaque(root));
  assert.equal(wrong.status, NfsStatus.inval);
});

eachWay('RENAME and LINK, both directories told', async ({ nfs, create, mkdir, lookup }) => {
  const from = await mkdir('from');
  const to = await mkdir('to');
  const file = await create('a', from);
  await create('b', to);
  const rename = (a: Buffer, aName: string, b: Buffer, bName: string) =>
    nfs(Procedure.rename, (args) => {
      directoryName(args, a, aName);
      directoryName(args, b, bName);
    });
  const done = await rename(from, 'a', to, 'b');
  assert.equal(done.status, 0);
  assert.notEqual(wcc(done.results).before, undefined);
  assert.notEqual(wcc(done.results).before, undefined);
  done.results.done();
  assert.deepEqual(Buffer.from((await lookup('b', to)).results.opaque(64)), file);
  const missing = await rename(from, 'a', to, 'b');
  assert.equal(missing.status, NfsStatus.noent);
  wcc(missing.results);
  wcc(missing.results);
  missing.results.done();
  assert.equal((await rename(from, '.', to, 'b')).status, NfsStatus.inval);
  const link = (target: Buffer, directory: Buffer, name: string) =>
    nfs(Procedure.link, (args) => {
      args.opaque(target);
      directoryName(args, directory, name);
    });
  const linked = await link(file, from, 'second');
  assert.equal(linked.status, 0);
  assert.equal(linked.results.u32(), 1);
  assert.equal(fattr(linked.results).links, 2);
  wcc(linked.results);
  linked.results.done();
  assert.equal((await link(file, from, 'second')).status, NfsStatus.exist);
  assert.equal((await link(from, to, 'x')).status, NfsStatus.isdir);
});

eachWay('MKNOD is not supported', async ({ root, nfs }) => {
  const make = (type: number) =>
    nfs(Procedure.mknod, (args) => {
      directoryName(args, root, 'node');
      args.u32(type);
      noChange(args);
    });
  const { status, results } = await make(7);
  assert.equal(status, NfsStatus.notsupp);
  wcc(results);
  results.done();
  assert.equal((await make(1)).status, NfsStatus.badtype);
});

eachWay(
  'READDIR and READDIRPLUS list every entry once, in pages of any size',
  async ({ nfs, create, mkdir, list }) => {
    const directory = await mkdir('many');
    const names = Array.from({ length: 60 }, (_, index) => `file-${index}`);
    for (const name of names) await create(name, directory);
    const wanted = ['.', '..', ...names].sort();
    assert.deepEqual((await list(directory, 300, false)).sort(), wanted);
    assert.deepEqual((await list(directory, 65_536, false)).sort(), wanted);
    assert.deepEqual((await list(directory, 700, true)).sort(), wanted);
    assert.deepEqual((await list(directory, 1 << 20, true)).sort(), wanted);
    const small = await nfs(Procedure.readdir, (args) => {
      args.opaque(directory);
      for (const value of [0, 0, 0, 0, 106]) args.u32(value);
    });
    assert.equal(small.status, NfsStatus.toosmall);
    const cookie = await nfs(Procedure.readdir, (args) => {
      args.opaque(directory);
      for (const value of [0, 1, 0, 1, 4096]) args.u32(value);
    });
    assert.equal(cookie.status, NfsStatus.badCookie);
    const file = await create('plain');
    const wrong = await nfs(Procedure.readdir, (args) => {
      args.opaque(file);
      for (const value of [0, 0, 0, 0, 4096]) args.u32(value);
    });
    assert.equal(wrong.status, NfsStatus.notdir);
  },
);

eachWay('FSSTAT, FSINFO, PATHCONF', async ({ root, nfs }) => {
  const stat = await nfs(Procedure.fsstat, (args) => args.opaque(root));
  assert.equal(stat.status, 0);
  stat.results.u32();
  fattr(stat.results);
  assert.equal(stat.results.u64Number(), 8 << 20);
  assert.ok(stat.results.u64Number() <= 8 << 20);
  stat.results.skip(4 * 8 + 4);
  stat.results.done();
  const info = await nfs(Procedure.fsinfo, (args) => args.opaque(root));
  info.results.u32();
  fattr(info.results);
  assert.equal(info.results.u32(), 1 << 20);
  info.results.skip(8);
  assert.equal(info.results.u32(), 1 << 20);
  info.results.skip(8 + 4 + 8 + 8 + 4);
  info.results.done();
  const conf = await nfs(Procedure.pathconf, (args) => args.opaque(root));
  conf.results.u32();
  fattr(conf.results);
  conf.results.skip(24);
  conf.results.done();
});
