//! What opcodes mean, with their suffixes and operands.

use super::{FunctionDecoder, Outcome};
use crate::program::{Collective, Operand, Operation, Shuffle, Space};
use crate::text::{Statement, Term};
use crate::value::{Binary, Comparison, Conversion, Rounding, Type, Unary};

impl<'a> FunctionDecoder<'a> {
    pub(super) fn operation(&mut self, statement: &'a Statement<'a>) -> Outcome<Operation> {
        let parts: Vec<&str> = statement.opcode.split('.').collect();
        let (base, suffixes) = (parts[0], &parts[1..]);
        let terms = &statement.operands[..];
        let unknown = || "not known here".to_owned();
        // The last that is a type says what is worked on.
        let of = suffixes.iter().rev().find_map(|suffix| Type::of(suffix));
        match (base, suffixes) {
            ("bra", _) => {
                let [Term::Name(label)] = terms else { return Err("no label".into()) };
                self.branches.push((self.function.code.len(), label));
                Ok(Operation::Nothing)
            }
            ("call", _) => self.call(terms),
            ("ret", _) => Ok(Operation::Return),
            ("bar", ["sync"]) => match terms {
                [Term::Number("0")] => Ok(Operation::Barrier),
                _ => Err("a barrier of some threads".into()),
            },
            ("bar", ["warp", "sync"]) => self.collective(Collective::Barrier, &terms[0]),
            ("shfl", ["sync", mode, "b32"]) => self.shuffle(mode, terms),
            ("vote", ["sync", "ballot", "b32"]) => {
                let [to, predicate, mask] = terms else { return Err(unknown()) };
                let predicate = self.operand(Type::Pred, predicate)?;
                self.collective(Collective::Ballot { to: self.register(to)?, predicate }, mask)
            }
            ("barrier", ["cluster", "arrive", "release" | "relaxed"]) => {
                Ok(Operation::ClusterArrive)
            }
            ("barrier", ["cluster", "wait"] | ["cluster", "wait", "acquire"]) => {
                Ok(Operation::ClusterWait)
            }
            // Memory here is one, and in order.
            ("membar" | "fence" | "griddepcontrol", _) => Ok(Operation::Nothing),
            // There is no cache.
            ("createpolicy", ["fractional", _, "b64"]) => {
                let [to, _] = terms else { return Err(unknown()) };
                let (operation, of) = (Unary::Move, Type::U64);
                let (to, a) = (self.register(to)?, Operand::Value(0));
                Ok(Operation::Unary { operation, of, to, a })
            }
            ("nanosleep", _) => Ok(Operation::Pause),
            ("cp", ["async", rest @ ..]) => self.copy(rest, terms),
            ("ld" | "st", _) => self.memory(base, suffixes, of.ok_or_else(unknown)?, terms),
            ("atom", ["global", "inc", "u32"] | ["release", "gpu", "global", "inc", "u32"]) => {
                let [to, address, limit] = terms else { return Err(unknown()) };
                Ok(Operation::AtomicIncrement {
                    to: self.register(to)?,
                    address: self.address(address)?,
                    limit: self.operand(Type::U32, limit)?,
                })
            }
            ("cvta", _) => self.change_space(suffixes, terms),
            ("mapa", ["u64"]) => {
                let [to, a, rank] = terms else { return Err(unknown()) };
                Ok(Operation::MapShared {
                    to: self.register(to)?,
                    a: self.operand(Type::U64, a)?,
                    rank: self.operand(Type::U32, rank)?,
                })
            }
            ("cvt", _) => self.convert(suffixes, terms),
            ("mov", [_]) if terms.iter().any(|term| matches!(term, Term::List(_))) => {
                self.pack_or_unpack(of.ok_or_else(unknown)?, terms)
            }
            _ => self.arithmetic(base, suffixes, of.ok_or_else(unknown)?, terms),
        }
    }

    fn call(&self, terms: &[Term<'_>]) -> Outcome<Operation> {
        let (result, rest) = match terms {
            [Term::List(result), rest @ ..] => (result.first(), rest),
            rest => (None, rest),
        };
        let (name, arguments) = match rest {
            [Term::Name(name)] => (name, &[][..]),
            [Term::Name(name), Term::List(arguments)] => (name, &arguments[..]),
            _ => return Err("not a call of a function by its name".into()),
        };
        let function = *self.functions.get(name).ok_or_else(|| format!("no function {name}"))?;
        let result = result.map(|result| self.param(result)).transpose()?;
        let arguments = arguments.iter().map(|it| self.param(it)).collect::<Outcome<_>>()?;
        Ok(Operation::Call { function, arguments, result })
    }

    fn collective(&self, collective: Collective, mask: &Term<'_>) -> Outcome<Operation> {
        Ok(Operation::Collective { collective, mask: self.operand(Type::U32, mask)? })
    }

    fn shuffle(&self, mode: &str, terms: &[Term<'_>]) -> Outcome<Operation> {
        let mode = match mode {
            "up" => Shuffle::Up,
            "down" => Shuffle::Down,
            "bfly" => Shuffle::Butterfly,
            "idx" => Shuffle::Index,
            _ => return Err("not known here".into()),
        };
        let (to, in_range, rest) = match terms {
            [to, in_range, rest @ ..] if rest.len() == 4 => {
                (to, Some(self.register(in_range)?), rest)
            }
            [to, rest @ ..] => (to, None, rest),
            [] => return Err("no operands".into()),
        };
        let [value, lane, clamp, mask] = rest else { return Err("not its operands".into()) };
        let [value, lane, clamp] = [value, lane, clamp].map(|term| self.operand(Type::U32, term));
        let (value, lane, clamp) = (value?, lane?, clamp?);
        let to = self.register(to)?;
        self.collective(Collective::Shuffle { mode, to, in_range, value, lane, clamp }, mask)
    }

    fn copy(&self, suffixes: &[&str], terms: &[Term<'_>]) -> Outcome<Operation> {
        match (suffixes, terms) {
            (["cg", "shared", "global", "L2::cache_hint"], [to, from, bytes, read, _]) => {
                let Operand::Value(bytes) = self.operand(Type::U32, bytes)? else {
                    return Err("a size that is not said".into());
                };
                let read = self.operand(Type::U32, read)?;
                Ok(Operation::Copy {
                    to: self.address(to)?,
                    from: self.address(from)?,
                    bytes,
                    read,
                })
            }
            (["commit_group"], []) => Ok(Operation::CopyCommit),
            (["wait_group"], [Term::Number(groups)]) => {
                Ok(Operation::CopyWait(groups.parse().map_err(|_| "no number")?))
            }
            _ => Err("not known here".into()),
        }
    }

    fn memory(
        &self,
        base: &str,
        suffixes: &[&str],
        of: Type,
        terms: &[Term<'_>],
    ) -> Outcome<Operation> {
        let mut space = Space::Generic;
        for suffix in suffixes {
            if let Some(named) = space_of(suffix) {
                space = named;
                continue;
            }
            match *suffix {
                // Which cache, and in which order to others: memory here is one, and in order.
                "cs" | "nc" | "volatile" | "relaxed" | "acquire" | "gpu" | "v2" | "v4" => {}
                other if Type::of(other).is_some() => {}
                other => return Err(format!(".{other} is not known here")),
            }
        }
        let [first, second] = terms else { return Err("not two operands".into()) };
        if base == "ld" {
            let to = elements(first).map(|term| self.register(term)).collect::<Outcome<_>>()?;
            return Ok(Operation::Load { space, of, to, address: self.address(second)? });
        }
        let from = elements(second).map(|term| self.operand(of, term)).collect::<Outcome<_>>()?;
        Ok(Operation::Store { space, of, address: self.address(first)?, from })
    }

    fn change_space(&self, suffixes: &[&str], terms: &[Term<'_>]) -> Outcome<Operation> {
        let [to, a] = terms else { return Err("not two operands".into()) };
        let (to, a) = (self.register(to)?, self.operand(Type::U64, a)?);
        let (from_generic, space) = match suffixes {
            ["to", space, "u64"] => (true, space),
            [space, "u64"] => (false, space),
            _ => return Err("not known here".into()),
        };
        let space = space_of(space).ok_or("not known here")?;
        Ok(match from_generic {
            true => Operation::FromGeneric { space, to, a },
            false => Operation::ToGeneric { space, to, a },
        })
    }

    fn pack_or_unpack(&self, of: Type, terms: &[Term<'_>]) -> Outcome<Operation> {
        let part = |parts: &[_]| match of.bytes() / parts.len().max(1) {
            2 => Ok(Type::U16),
            4 => Ok(Type::U32),
            _ => Err("parts of another size"),
        };
        match terms {
            [Term::List(parts), a] => {
                let register = |term: &Term<'_>| match term {
                    Term::Name("_") => Ok(None),
                    term => self.register(term).map(Some),
                };
                let to = parts.iter().map(register).collect::<Outcome<_>>()?;
                Ok(Operation::Unpack { to, part: part(parts)?, a: self.operand(of, a)? })
            }
            [to, Term::List(parts)] => {
                let part = part(parts)?;
                let parts =
                    parts.iter().map(|it| self.operand(part, it)).collect::<Outcome<_>>()?;
                Ok(Operation::Pack { to: self.register(to)?, parts, part })
            }
            _ => Err("not known here".into()),
        }
    }

    fn convert(&self, suffixes: &[&str], terms: &[Term<'_>]) -> Outcome<Operation> {
        let [modifiers @ .., to, from] = suffixes else { return Err("not two types".into()) };
        let unknown = || "not known here".to_owned();
        let (to, from) = (Type::of(to).ok_or_else(unknown)?, Type::of(from).ok_or_else(unknown)?);
        let mut conversion = Conversion { to, from, integral: false, saturate: false };
        for modifier in modifiers {
            match *modifier {
                "rn" => {}
                "rzi" => conversion.integral = true,
                "sat" => conversion.saturate = true,
                _ => return Err(unknown()),
            }
        }
        let [register, a] = terms else { return Err("not two operands".into()) };
        Ok(Operation::Convert {
            conversion,
            to: self.register(register)?,
            a: self.operand(from, a)?,
        })
    }

    fn arithmetic(
        &self,
        base: &str,
        suffixes: &[&str],
        of: Type,
        terms: &[Term<'_>],
    ) -> Outcome<Operation> {
        let modifiers = &suffixes[..suffixes.len() - 1];
        let [to, terms @ ..] = terms else { return Err("no operands".into()) };
        let to = self.register(to)?;
        let operand = |term| self.operand(of, term);
        match (base, modifiers, terms) {
            ("setp", [comparison], [a, b]) => {
                let comparison = Comparison::of(comparison).ok_or("not known here")?;
                Ok(Operation::Compare { comparison, of, to, a: operand(a)?, b: operand(b)? })
            }
            ("selp", [], [a, b, predicate]) => {
                let predicate = self.operand(Type::Pred, predicate)?;
                Ok(Operation::Select { to, a: operand(a)?, b: operand(b)?, predicate })
            }
            ("fma", [rounding], [a, b, c]) => {
                let rounding = rounding_of(rounding).ok_or("not known here")?;
                let operands = [operand(a)?, operand(b)?, operand(c)?];
                Ok(Operation::Fused { of, rounding, to, operands })
            }
            ("add", ["rm" | "rp"], [a, b]) => {
                let rounding = rounding_of(modifiers[0]).ok_or("not known here")?;
                let one = of.literal("0f3F800000").ok_or("not of this type")?;
                let operands = [operand(a)?, Operand::Value(one), operand(b)?];
                Ok(Operation::Fused { of, rounding, to, operands })
            }
            ("mad", ["lo"], [a, b, c]) => {
                let operands = [operand(a)?, operand(b)?, operand(c)?];
                Ok(Operation::MultiplyAdd { of, to, operands })
            }
            ("prmt", [], [a, b, c]) => {
                Ok(Operation::Permute { to, operands: [operand(a)?, operand(b)?, operand(c)?] })
            }
            (_, _, [a]) => {
                let operation = unary(base, modifiers).ok_or("not known here")?;
                Ok(Operation::Unary { operation, of, to, a: operand(a)? })
            }
            (_, _, [a, b]) => {
                let operation = binary(base, modifiers).ok_or("not known here")?;
                let is_shift = matches!(operation, Binary::ShiftLeft | Binary::ShiftRight);
                let b = self.operand(if is_shift { Type::U32 } else { of }, b)?;
                Ok(Operation::Binary { operation, of, to, a: operand(a)?, b })
            }
            _ => Err("not known here".into()),
        }
    }
}

fn space_of(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "shared" => Space::Shared,
        "local" => Space::Local,
        "param" => Space::Param,
        _ => return None,
    })
}

fn rounding_of(name: &str) -> Option<Rounding> {
    Some(match name {
        "rn" => Rounding::Nearest,
        "rm" => Rounding::Down,
        "rp" => Rounding::Up,
        _ => return None,
    })
}

/// Of a vector, or the one operand.
fn elements<'t, 'a>(term: &'t Term<'a>) -> impl Iterator<Item = &'t Term<'a>> {
    let elements = match term {
        Term::List(elements) => &elements[..],
        one => std::slice::from_ref(one),
    };
    elements.iter()
}

fn unary(base: &str, modifiers: &[&str]) -> Option<Unary> {
    Some(match (base, modifiers) {
        ("mov", []) => Unary::Move,
        ("not", []) => Unary::Not,
        ("neg", []) => Unary::Neg,
        ("abs", []) => Unary::Abs,
        ("popc", []) => Unary::PopulationCount,
        ("brev", []) => Unary::ReverseBits,
        ("bfind", ["shiftamt"]) => Unary::FindShift,
        ("sqrt", ["rn"]) => Unary::Sqrt,
        ("rcp", ["rn"]) => Unary::Reciprocal,
        ("rcp", ["approx", "ftz"]) => Unary::ReciprocalApprox,
        ("ex2", ["approx", "ftz"]) => Unary::Exp2Approx,
        _ => return None,
    })
}

fn binary(base: &str, modifiers: &[&str]) -> Option<Binary> {
    Some(match (base, modifiers) {
        ("add", [] | ["rn"]) => Binary::Add,
        ("sub", [] | ["rn"]) => Binary::Sub,
        ("mul", [] | ["rn"] | ["lo"]) => Binary::Mul,
        ("mul", ["wide"]) => Binary::MulWide,
        ("mul", ["hi"]) => Binary::MulHigh,
        ("div", [] | ["rn"]) => Binary::Div,
        ("rem", []) => Binary::Rem,
        ("min", []) => Binary::Min,
        ("max", []) => Binary::Max,
        ("max", ["NaN"]) => Binary::MaxNan,
        ("and", []) => Binary::And,
        ("or", []) => Binary::Or,
        ("xor", []) => Binary::Xor,
        ("shl", []) => Binary::ShiftLeft,
        ("shr", []) => Binary::ShiftRight,
        _ => return None,
    })
}
