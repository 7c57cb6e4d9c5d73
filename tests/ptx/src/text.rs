//! PTX as text: what NVRTC writes, taken apart into declarations, labels and statements. What they
//! mean is [`decode`](crate::decode)'s.

use std::iter::Peekable;
use std::str::CharIndices;

/// One unit's text.
#[derive(Debug, Default)]
pub struct Text<'a> {
    /// Shared and other variables outside functions.
    pub variables: Vec<Variable<'a>>,
    /// In the order of the text; those declared ahead of their bodies only once.
    pub functions: Vec<FunctionText<'a>>,
}

/// A kernel or a function that kernels call.
#[derive(Debug)]
pub struct FunctionText<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether launches may name it.
    pub is_kernel: bool,
    /// `.maxntid`: the most threads of a block.
    pub max_threads: u32,
    /// What it takes.
    pub params: Vec<Variable<'a>>,
    /// What it gives.
    pub result: Option<Variable<'a>>,
    /// Its body.
    pub lines: Vec<(u32, Line<'a>)>,
}

/// A declaration: `.shared .align 16 .b8 shelf[4096]`, `.reg .b32 %r<100>`.
#[derive(Debug, Clone, Copy)]
pub struct Variable<'a> {
    /// `reg`, `param`, `shared`, `local`, `global`.
    pub space: &'a str,
    /// Without the count of registers.
    pub name: &'a str,
    /// Bytes of an element.
    pub size: u32,
    /// Elements, or registers that the name stands for; 0: none is said.
    pub count: u32,
    /// Bytes that the address is a multiple of.
    pub align: u32,
}

/// A line of a body.
#[derive(Debug)]
pub enum Line<'a> {
    /// `name:`.
    Label(&'a str),
    /// `{`: names from here on are forgotten at `}`.
    Open,
    /// `}`.
    Close,
    /// A variable.
    Declare(Variable<'a>),
    /// What is done.
    Statement(Statement<'a>),
}

/// `@%p1 add.s32 %r1, %r2, 3;`.
#[derive(Debug)]
pub struct Statement<'a> {
    /// The predicate that it depends on, and the value that lets it happen.
    pub guard: Option<(&'a str, bool)>,
    /// With its suffixes.
    pub opcode: &'a str,
    /// Lists, as of a vector's elements, are one operand.
    pub operands: Vec<Term<'a>>,
}

/// An operand.
#[derive(Debug, PartialEq)]
pub enum Term<'a> {
    /// A register, a variable, a function, a label.
    Name(&'a str),
    /// `12`, `-1`, `0f3F800000`, sign included.
    Number(&'a str),
    /// `[name+8]`.
    Address(&'a str, i64),
    /// `{a, b}`, `(a, b)`.
    List(Vec<Term<'a>>),
}

/// Takes a unit's text apart.
///
/// # Errors
/// Something else than PTX as NVRTC writes it: the line, and what is there.
pub fn parse(text: &str) -> Result<Text<'_>, String> {
    let mut parser = Parser { tokens: Tokens::new(text).peekable(), line: 0 };
    let outcome = parser.unit();
    outcome.map_err(|error| format!("PTX line {}: {error}", parser.line))
}

/// Words, numbers and punctuation, each with its line. Comments are left out.
struct Tokens<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    line: u32,
}

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Tokens { text, chars: text.char_indices().peekable(), line: 1 }
    }

    fn skip_line(&mut self) {
        while self.chars.next_if(|(_, c)| *c != '\n').is_some() {}
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (u32, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (start, first) = self.chars.next()?;
            match first {
                '\n' => self.line += 1,
                _ if first.is_whitespace() => {}
                '/' => self.skip_line(),
                '"' => {
                    while self.chars.next_if(|(_, c)| *c != '"').is_some() {}
                    let end = self.chars.next()?.0;
                    return Some((self.line, &self.text[start..=end]));
                }
                _ if is_word(first) || first == '-' => {
                    let mut end = start + 1;
                    loop {
                        if let Some((at, _)) = self.chars.next_if(|(_, c)| is_word(*c)) {
                            end = at + 1;
                        } else if self.text[end..].starts_with("::") {
                            // As in `L2::cache_hint`; a label has one.
                            self.chars.nth(1);
                            end += 2;
                        } else {
                            break;
                        }
                    }
                    return Some((self.line, &self.text[start..end]));
                }
                _ => return Some((self.line, &self.text[start..=start])),
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.$%".contains(c)
}

struct Parser<'a> {
    tokens: Peekable<Tokens<'a>>,
    line: u32,
}

impl<'a> Parser<'a> {
    fn peek(&mut self) -> Option<&'a str> {
        self.tokens.peek().map(|(_, token)| *token)
    }

    fn next(&mut self) -> Result<&'a str, String> {
        let (line, token) = self.tokens.next().ok_or("the text ends here")?;
        self.line = line;
        Ok(token)
    }

    /// Takes the token if it is next.
    fn skip(&mut self, token: &str) -> bool {
        let is_next = self.peek() == Some(token);
        if is_next {
            self.line = self.tokens.next().map_or(self.line, |(line, _)| line);
        }
        is_next
    }

    fn expect(&mut self, token: &str) -> Result<(), String> {
        let found = self.next()?;
        if found == token { Ok(()) } else { Err(format!("`{token}` expected, `{found}` found")) }
    }

    fn integer<T: std::str::FromStr>(&mut self) -> Result<T, String> {
        let token = self.next()?;
        token.parse().map_err(|_| format!("a number expected, `{token}` found"))
    }

    fn unit(&mut self) -> Result<Text<'a>, String> {
        let mut text = Text::default();
        while let Some(token) = self.peek() {
            match token {
                ".version" | ".target" | ".address_size" => {
                    self.next()?;
                    self.next()?;
                }
                ".visible" | ".extern" | ".weak" => _ = self.next()?,
                ".func" | ".entry" => {
                    if let Some(function) = self.function()? {
                        text.functions.push(function);
                    }
                }
                _ => {
                    let variable = self.variable()?;
                    // What they are set to is of no interest: nothing here reads them.
                    while self.next()? != ";" {}
                    text.variables.push(variable);
                }
            }
        }
        Ok(text)
    }

    /// `None` where it is only declared.
    fn function(&mut self) -> Result<Option<FunctionText<'a>>, String> {
        let is_kernel = self.next()? == ".entry";
        let result = if self.peek() == Some("(") { self.variables()?.pop() } else { None };
        let name = self.next()?;
        let params = if self.peek() == Some("(") { self.variables()? } else { Vec::new() };
        let mut function =
            FunctionText { name, is_kernel, max_threads: 0, params, result, lines: Vec::new() };
        loop {
            match self.next()? {
                ";" => return Ok(None),
                "{" => break,
                ".maxntid" => {
                    function.max_threads = self.integer()?;
                    while self.skip(",") {
                        self.next()?;
                    }
                }
                ".minnctapersm" => _ = self.next()?,
                ".noreturn" => {}
                other => return Err(format!("`{other}` after the head of {name}")),
            }
        }
        let mut depth = 1;
        while depth > 0 {
            let line = self.line()?;
            match line {
                Line::Open => depth += 1,
                Line::Close => depth -= 1,
                _ => {}
            }
            function.lines.push((self.line, line));
        }
        Ok(Some(function))
    }

    /// `(.param .b64 a, .param .b64 b)`.
    fn variables(&mut self) -> Result<Vec<Variable<'a>>, String> {
        self.expect("(")?;
        let mut variables = Vec::new();
        while !self.skip(")") {
            variables.push(self.variable()?);
            self.skip(",");
        }
        Ok(variables)
    }

    fn variable(&mut self) -> Result<Variable<'a>, String> {
        let space = self.next()?.trim_start_matches('.');
        let (mut size, mut align) = (1, 0);
        let name = loop {
            let token = self.next()?;
            match token {
                ".align" => align = self.integer()?,
                ".pred" => size = 1,
                _ if token.starts_with('.') => {
                    let bits = token.trim_start_matches(|c: char| !c.is_ascii_digit());
                    let bits: u32 =
                        bits.parse().map_err(|_| format!("a type expected, `{token}` found"))?;
                    size = bits / 8;
                }
                _ => break token,
            }
        };
        let mut count = 1;
        if self.skip("[") {
            count = if self.peek() == Some("]") { 0 } else { self.integer()? };
            self.expect("]")?;
        } else if self.skip("<") {
            count = self.integer()?;
            self.expect(">")?;
        } else if space == "reg" {
            count = 0;
        }
        Ok(Variable { space, name, size, count, align: align.max(size) })
    }

    fn line(&mut self) -> Result<Line<'a>, String> {
        loop {
            let token = self.peek().ok_or("the text ends within a function")?;
            match token {
                "{" | "}" => {
                    self.next()?;
                    return Ok(if token == "{" { Line::Open } else { Line::Close });
                }
                ".pragma" => while self.next()? != ";" {},
                ".reg" | ".param" | ".shared" | ".local" => {
                    let variable = self.variable()?;
                    self.expect(";")?;
                    return Ok(Line::Declare(variable));
                }
                _ => return self.label_or_statement(),
            }
        }
    }

    fn label_or_statement(&mut self) -> Result<Line<'a>, String> {
        let mut guard = None;
        if self.skip("@") {
            let wanted = !self.skip("!");
            guard = Some((self.next()?, wanted));
        }
        let opcode = self.next()?;
        if self.skip(":") {
            return Ok(Line::Label(opcode));
        }
        let operands = self.terms(";")?;
        Ok(Line::Statement(Statement { guard, opcode, operands }))
    }

    /// Up to `end`; `a|b` is two.
    fn terms(&mut self, end: &str) -> Result<Vec<Term<'a>>, String> {
        let mut terms = Vec::new();
        while !self.skip(end) {
            terms.push(self.term()?);
            _ = self.skip(",") || self.skip("|");
        }
        Ok(terms)
    }

    fn term(&mut self) -> Result<Term<'a>, String> {
        let token = self.next()?;
        match token {
            "{" => Ok(Term::List(self.terms("}")?)),
            "(" => Ok(Term::List(self.terms(")")?)),
            "[" => {
                let base = self.next()?;
                let mut offset = 0;
                if self.skip("+") {
                    offset = self.integer()?;
                }
                self.expect("]")?;
                Ok(Term::Address(base, offset))
            }
            _ if token.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                Ok(Term::Number(token))
            }
            _ if token.starts_with(is_word) => Ok(Term::Name(token)),
            _ => Err(format!("an operand expected, `{token}` found")),
        }
    }
}
