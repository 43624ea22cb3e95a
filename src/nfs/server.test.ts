import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { systemClock } from '../lib/clock.ts';
import { nfsLimits } from '../limits.ts';
import { lateFileSystem, MemoryFileSystem } from '../testing/memory-file-system.ts';
import { encodeCall, RpcClient, type RpcReply } from '../testing/nfs-client.ts';
import { NfsStatus } from './file-system.ts';
import { Procedure } from './nfs3/types.ts';
import { createNfsServer, type NfsServer } from './server.ts';
import { XdrReader, type XdrWriter } from './xdr.ts';

/**
 * All 22 procedures, MOUNT and the replies of RPC, spoken raw; once with a file system that answers
 * at once, once with one that answers late.
 */
const silent = { info: () => undefined, warn: () => undefined };
const secret = Buffer.alloc(32, 7);
const MOUNT = { program: 100_005, version: 3 };

for (const late of [false, true]) {
  describe(late ? 'NFSv3, late answers' : 'NFSv3, immediate answers', () => {
    let memory: MemoryFileSystem;
    let server: NfsServer;
    let client: RpcClient;
    let root: Buffer;

    before(async () => {
      memory = new MemoryFileSystem({ clock: systemClock, capacityBytes: 8 << 20 });
      server = createNfsServer({
        clock: systemClock,
        log: silent,
        listen: { addresses: ['127.0.0.1', '::1'], nfsPort: 0, mountPort: 0, portmap: 'off' },
      });
      await server.start();
      const fileSystem = late ? lateFileSystem(memory) : memory;
      const clients = ['127.0.0.1', '::1'];
      server.addExport({ id: 7, path: '/vault/Recover-a-1', secret, clients, fileSystem });
      client = await RpcClient.open(server.nfsPort);
      root = await mount('/vault/Recover-a-1');
    });

    after(async () => {
      await client.close();
      await server.close();
    });

    // -- a client's verbs -----------------------------------------------------------------------

    async function mountStatus(path: string): Promise<{ status: number; results: XdrReader }> {
      const reply = await client.call(1, (args) => args.text(path), MOUNT);
      assert.equal(reply.status, 0);
      return { status: reply.results.u32(), results: reply.results };
    }

    async function mount(path: string): Promise<Buffer> {
      const { status, results } = await mountStatus(path);
      assert.equal(status, 0);
      return Buffer.from(results.opaque(64));
    }

    async function nfs(
      procedure: number,
      args: (writer: XdrWriter) => void,
      uid = 0,
    ): Promise<{ status: number; results: XdrReader }> {
      const reply = await client.call(procedure, args, { uid });
      assert.equal(reply.denied, false);
      assert.equal(reply.status, 0);
      return { status: reply.results.u32(), results: reply.results };
    }

    async function create(name: string, directory = root): Promise<Buffer> {
      const { status, results } = await nfs(Procedure.create, (args) => {
        directoryName(args, directory, name);
        args.u32(0);
        noChange(args);
      });
      assert.equal(status, 0);
      return postHandle(results);
    }

    async function mkdir(name: string, directory = root): Promise<Buffer> {
      const { status, results } = await nfs(Procedure.mkdir, (args) => {
        directoryName(args, directory, name);
        noChange(args);
      });
      assert.equal(status, 0);
      return postHandle(results);
    }

    async function lookup(name: string, directory = root) {
      return await nfs(Procedure.lookup, (args) => directoryName(args, directory, name));
    }

    async function getattr(handle: Buffer) {
      const { status, results } = await nfs(Procedure.getattr, (args) => args.opaque(handle));
      assert.equal(status, 0);
      const attributes = fattr(results);
      results.done();
      return attributes;
    }

    async function write(handle: Buffer, offset: number, data: Buffer, stable = 2) {
      return await nfs(Procedure.write, (args) => {
        args.opaque(handle);
        args.u64Number(offset);
        args.u32(data.length);
        args.u32(stable);
        args.opaque(data);
      });
    }

    async function read(handle: Buffer, offset: number, count: number) {
      const { status, results } = await nfs(Procedure.read, (args) => {
        args.opaque(handle);
        args.u64Number(offset);
        args.u32(count);
      });
      assert.equal(status, 0);
      assert.equal(results.u32(), 1);
      const attributes = fattr(results);
      const bytes = results.u32();
      const eof = results.bool();
      const data = Buffer.from(results.opaque(1 << 20));
      results.done();
      assert.equal(data.length, bytes);
      return { attributes, eof, data };
    }

    // -- RPC ------------------------------------------------------------------------------------

    test('RPC: null, unknown procedure, program and version', async () => {
      const empty = () => undefined;
      assert.equal((await client.call(0, empty)).status, 0);
      assert.equal((await client.call(22, empty)).status, 3);
      assert.equal((await client.call(0, empty, { program: 100_227 })).status, 1);
      const mismatch = await client.call(0, empty, { version: 4 });
      assert.equal(mismatch.status, 2);
      assert.deepEqual([mismatch.results.u32(), mismatch.results.u32()], [3, 3]);
      const mountMismatch = await client.call(0, empty, { program: 100_005, version: 1 });
      assert.equal(mountMismatch.status, 2);
    });

    test('RPC: another RPC version, unknown and broken credentials are denied', async () => {
      const empty = () => undefined;
      const version = await client.call(0, empty, { rpcVersion: 3 });
      assert.equal(version.denied, true);
      assert.deepEqual([version.status, version.results.u32(), version.results.u32()], [0, 2, 2]);
      const flavor = await client.call(0, empty, { credential: words(6, 0) });
      assert.deepEqual([flavor.denied, flavor.status, flavor.results.u32()], [true, 1, 2]);
      const broken = await client.call(0, empty, { credential: words(1, 4, 0) });
      assert.deepEqual([broken.denied, broken.status, broken.results.u32()], [true, 1, 1]);
      const many = words(1, 4 * 22, 0, 0, 0, 0, 17, ...Array.from({ length: 17 }, () => 0));
      const groups = await client.call(0, empty, { credential: many });
      assert.deepEqual([groups.denied, groups.status, groups.results.u32()], [true, 1, 1]);
    });

    test('RPC: arguments that are too short or too long are garbage', async () => {
      const short = await client.call(Procedure.read, (args) => args.opaque(root));
      assert.equal(short.status, 4);
      const long = await client.call(Procedure.getattr, (args) => {
        args.opaque(root);
        args.u32(0);
      });
      assert.equal(long.status, 4);
      const huge = await client.call(Procedure.getattr, (args) => args.u32(0xffff_fff0));
      assert.equal(huge.status, 4);
    });

    test('RPC: AUTH_NONE is let in as nobody', async () => {
      const credential = words(0, 0);
      const reply = await client.call(
        Procedure.access,
        (args) => {
          args.opaque(root);
          args.u32(0x3f);
        },
        { credential },
      );
      assert.equal(reply.results.u32(), 0);
      assert.equal(reply.results.u32(), 1);
      fattr(reply.results);
      assert.equal(reply.results.u32() & 0x04, 0);
    });

    test('RPC: any split of records and fragments gives the same replies', async () => {
      for (const fragmentBytes of [1, 3, 7, 64]) {
        const reply = await client.call(Procedure.getattr, (args) => args.opaque(root), {
          fragmentBytes,
        });
        assert.equal(reply.results.u32(), 0);
      }
      const xids = Array.from({ length: 40 }, () => client.freshXid());
      const replies = xids.map((xid) => client.replyTo(xid));
      const bytes = Buffer.concat(
        xids.map((xid) => encodeCall(xid, Procedure.getattr, (args) => args.opaque(root))),
      );
      for (let at = 0; at < bytes.length; at += 113) {
        client.socket.write(bytes.subarray(at, at + 113));
        if (at % 5 === 0) await new Promise((resolve) => setImmediate(resolve));
      }
      for (const reply of await Promise.all(replies)) assert.equal(reply.results.u32(), 0);
    });

    // -- procedures -----------------------------------------------------------------------------

    test('GETATTR, SETATTR with and without a guard', async () => {
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

    test('LOOKUP: found, missing, dot, dot-dot, wrong names, in a file', async () => {
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
    });

    test('ACCESS: root may all, others what the mode says', async () => {
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

    test('READ and WRITE: bytes, eof, wcc, verifier, holes, 1 MiB', async () => {
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
    });

    test('many READs and WRITEs in flight keep their own bytes', async () => {
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

    test('READ and WRITE: wrong arguments', async () => {
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

    test('COMMIT answers with wcc and the verifier', async () => {
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

    test('CREATE: unchecked, guarded, exclusive', async () => {
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

    test('MKDIR, RMDIR, REMOVE', async () => {
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

    test('SYMLINK, READLINK', async () => {
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

    test('RENAME and LINK, both directories told', async () => {
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

    test('MKNOD is not supported', async () => {
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

    test('READDIR and READDIRPLUS list every entry once, in pages of any size', async () => {
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
    });

    async function list(directory: Buffer, bytes: number, plus: boolean): Promise<string[]> {
      const names: string[] = [];
      let cookie = 0n;
      for (;;) {
        const procedure = plus ? Procedure.readdirplus : Procedure.readdir;
        const reply: RpcReply = await client.call(procedure, (args) => {
          args.opaque(directory);
          args.u64(cookie);
          args.u64(0n);
          if (plus) args.u32(512);
          args.u32(bytes);
        });
        const { results } = reply;
        assert.ok(reply.bytes.length - 28 <= Math.max(bytes, 0));
        assert.equal(results.u32(), 0);
        assert.equal(results.u32(), 1);
        fattr(results);
        results.u64();
        while (results.bool()) {
          const fileId = results.u64Number();
          names.push(results.text(255));
          cookie = results.u64();
          if (plus) {
            assert.equal(results.u32(), 1);
            assert.equal(fattr(results).fileId, fileId);
            postHandle(results);
          }
        }
        const eof = results.bool();
        results.done();
        if (eof) return names;
      }
    }

    test('FSSTAT, FSINFO, PATHCONF', async () => {
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

    // -- handles --------------------------------------------------------------------------------

    test('handles: foreign, changed, of an old generation, of another export', async () => {
      const file = await create('handled');
      const status = async (handle: Buffer) =>
        (await nfs(Procedure.getattr, (args) => args.opaque(handle))).status;
      assert.equal(await status(file), 0);
      for (let at = 8; at < file.length; at++) {
        const changed = Buffer.from(file);
        changed[at] = (changed[at] ?? 0) ^ 1;
        assert.equal(await status(changed), NfsStatus.badhandle);
      }
      assert.equal(await status(file.subarray(0, 32)), NfsStatus.badhandle);
      assert.equal(await status(Buffer.alloc(64)), NfsStatus.badhandle);
      assert.equal(await status(Buffer.alloc(0)), NfsStatus.badhandle);
      const elsewhere = Buffer.from(file);
      elsewhere.writeUInt32BE(99, 4);
      assert.equal(await status(elsewhere), NfsStatus.stale);
      memory.renew(memory.lookup(1, 'handled'));
      assert.equal(await status(file), NfsStatus.stale);
    });

    test('a removed export: its handles are stale; handles outlive a server', async () => {
      const other = new MemoryFileSystem({ clock: systemClock, fsid: 2n });
      const fileSystem = late ? lateFileSystem(other) : other;
      const definition = { id: 8, path: '/b', secret, clients: ['127.0.0.1'], fileSystem };
      server.addExport(definition);
      assert.throws(() => server.addExport(definition), { code: 'already-exists' });
      const handle = await mount('/b');
      const cross = await nfs(Procedure.rename, (args) => {
        directoryName(args, handle, 'x');
        directoryName(args, root, 'y');
      });
      assert.equal(cross.status, NfsStatus.xdev);
      assert.deepEqual(server.exports()[1]?.connected, ['127.0.0.1']);
      assert.equal(await server.removeExport('/b'), true);
      assert.equal(await server.removeExport('/b'), false);
      const gone = await nfs(Procedure.getattr, (args) => args.opaque(handle));
      assert.equal(gone.status, NfsStatus.stale);
      assert.equal((await mountStatus('/b')).status, NfsStatus.noent);
      server.addExport(definition);
      assert.equal((await getattr(handle)).type, 2);
      await server.removeExport('/b');
    });

    test('an address that is no client is refused on every call, both families', async () => {
      const other = new MemoryFileSystem({ clock: systemClock });
      const definition = { id: 9, path: '/six', secret, clients: ['::1'], fileSystem: other };
      server.addExport(definition);
      assert.equal((await mountStatus('/six')).status, NfsStatus.acces);
      const six = await RpcClient.open(server.nfsPort, '::1');
      const reply = await six.call(1, (args) => args.text('/six'), MOUNT);
      assert.equal(reply.results.u32(), 0);
      const stolen = Buffer.from(reply.results.opaque(64));
      const good = await six.call(Procedure.getattr, (args) => args.opaque(stolen));
      assert.equal(good.results.u32(), 0);
      for (const procedure of [1, 4, 5, 6, 7, 18, 19, 20, 21]) {
        const { status } = await nfs(procedure, (args) => {
          args.opaque(stolen);
          if (procedure === 4) args.u32(0x3f);
          if (procedure === 6 || procedure === 21) args.fixed(Buffer.alloc(12));
          if (procedure === 7) args.fixed(Buffer.alloc(20));
        });
        assert.equal(status, NfsStatus.acces, `procedure ${procedure}`);
      }
      assert.equal(server.exports().find((one) => one.path === '/six')?.refused, 10);
      await six.close();
      await server.removeExport('/six');
    });

    // -- the duplicate request cache --------------------------------------------------------------

    test('a repeated call runs once and gets the same reply, over a reconnect too', async () => {
      const args = (writer: XdrWriter) => {
        directoryName(writer, root, 'once');
        writer.u32(1);
        noChange(writer);
      };
      const runsBefore = memory.calls.get('create') ?? 0;
      const xid = 0x7fff_0001;
      const [first, second] = await Promise.all([
        client.call(Procedure.create, args, { xid }),
        client.call(Procedure.create, args, { xid }),
      ]);
      assert.equal(first.results.u32(), 0);
      assert.deepEqual(first.bytes, second.bytes);
      const other = await RpcClient.open(server.nfsPort);
      const third = await other.call(Procedure.create, args, { xid });
      assert.deepEqual(third.bytes, first.bytes);
      assert.equal(memory.calls.get('create'), runsBefore + 1);
      const fresh = await other.call(Procedure.create, args);
      assert.equal(fresh.results.u32(), NfsStatus.exist);
      await other.close();
    });

    test('a call whose connection dies runs, and its reply waits for the repetition', async () => {
      const args = (writer: XdrWriter) => {
        directoryName(writer, root, 'orphan');
        noChange(writer);
      };
      const dying = await RpcClient.open(server.nfsPort);
      const xid = 0x7fff_0002;
      const lost = dying.call(Procedure.mkdir, args, { xid }).catch(() => undefined);
      dying.socket.end();
      await lost;
      await dying.close();
      const again = await client.call(Procedure.mkdir, args, { xid });
      assert.equal(again.results.u32(), 0);
    });

    // -- MOUNT ------------------------------------------------------------------------------------

    test('MOUNT: sub-directories, files, missing paths, traversal', async () => {
      memory.put('/web01/vda-flat.vmdk', Buffer.from('disk'));
      const directory = await mount('/vault/Recover-a-1/web01');
      assert.equal((await lookup('vda-flat.vmdk', directory)).status, 0);
      assert.deepEqual(await mount('//vault/Recover-a-1//web01/'), directory);
      const status = async (path: string) => (await mountStatus(path)).status;
      assert.equal(await status('/vault/Recover-a-1/nothing'), NfsStatus.noent);
      const file = '/vault/Recover-a-1/web01/vda-flat.vmdk';
      assert.equal(await status(file), NfsStatus.notdir);
      assert.equal(await status('/vault'), NfsStatus.noent);
      assert.equal(await status('/vault/Recover-a-12'), NfsStatus.noent);
      assert.equal(await status('/vault/Recover-a-1/..'), NfsStatus.noent);
      assert.equal(await status('vault/Recover-a-1'), NfsStatus.noent);
    });

    test('MOUNT: EXPORT, DUMP, UMNT, UMNTALL', async () => {
      const exports = await client.call(5, () => undefined, MOUNT);
      const { results } = exports;
      assert.equal(results.bool(), true);
      assert.equal(results.text(1024), '/vault/Recover-a-1');
      assert.equal(results.bool(), true);
      assert.equal(results.text(255), '127.0.0.1');
      assert.equal(results.bool(), true);
      assert.equal(results.text(255), '::1');
      assert.equal(results.bool(), false);
      assert.equal(results.bool(), false);
      results.done();
      const mounts = async () => {
        const { results } = await client.call(2, () => undefined, MOUNT);
        const list: string[] = [];
        while (results.bool()) list.push(`${results.text(255)} ${results.text(1024)}`);
        return list;
      };
      await mount('/vault/Recover-a-1/web01');
      assert.ok((await mounts()).includes('127.0.0.1 /vault/Recover-a-1/web01'));
      await client.call(3, (args) => args.text('/vault/Recover-a-1/web01/'), MOUNT);
      assert.ok(!(await mounts()).includes('127.0.0.1 /vault/Recover-a-1/web01'));
      await client.call(4, () => undefined, MOUNT);
      assert.deepEqual(await mounts(), []);
      assert.equal((await client.call(6, () => undefined, MOUNT)).status, 3);
    });

    test('what was done is counted', async () => {
      const file = await create('counted');
      const counters = () => server.exports()[0];
      const start = counters();
      await write(file, 0, Buffer.alloc(100));
      await read(file, 0, 50);
      await getattr(file);
      const end = counters();
      assert.ok(start !== undefined && end !== undefined);
      assert.equal(end.writes - start.writes, 1);
      assert.equal(end.writtenBytes - start.writtenBytes, 100);
      assert.equal(end.reads - start.reads, 1);
      assert.equal(end.readBytes - start.readBytes, 50);
      assert.equal(end.others - start.others, 1);
      assert.equal(end.inFlightCalls, 0);
      assert.ok((end.lastUsedMs ?? 0) > 0);
      const reads = end.readLatency.counts.reduce((sum, count) => sum + count, 0);
      assert.equal(reads, end.reads);
    });
  });
}

// -- what is on the wire --------------------------------------------------------------------------

function words(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  for (const [index, value] of values.entries()) bytes.writeUInt32BE(value, index * 4);
  return bytes;
}

function directoryName(args: XdrWriter, directory: Buffer, name: string): void {
  args.opaque(directory);
  args.text(name);
}

function noChange(args: XdrWriter): void {
  for (let index = 0; index < 6; index++) args.u32(0);
}

function postHandle(results: XdrReader): Buffer {
  assert.equal(results.u32(), 1);
  return Buffer.from(results.opaque(64));
}

function fattr(results: XdrReader) {
  const [type, mode, links, uid, gid] = Array.from({ length: 5 }, () => results.u32());
  const sizeBytes = results.u64Number();
  results.skip(8 + 8 + 8);
  const fileId = results.u64Number();
  results.skip(8);
  const modified: [number, number] = [results.u32(), results.u32()];
  const changed: [number, number] = [results.u32(), results.u32()];
  return { type, mode, links, uid, gid, sizeBytes, fileId, modified, changed };
}

function wcc(results: XdrReader) {
  const before = results.bool() ? { sizeBytes: results.u64Number() } : undefined;
  if (before !== undefined) results.skip(16);
  const after = results.bool() ? fattr(results) : undefined;
  return { before, after };
}
